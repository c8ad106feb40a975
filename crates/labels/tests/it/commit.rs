//! Commits: all or nothing, resumed to the same bytes, raced without harm.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{Random, TOP_4, labels, plan, sequence, shard_labels, tree, write_dataset, write_shard};
use softshard_labels::{
    Commit, Error, LabelDataset, LabelPlan, LabelWriter, LabelsManifest, SequenceDataset, SequenceWriter,
    ShardRecord,
};

fn files(dir: &std::path::Path) -> usize {
    fs_err::read_dir(dir).unwrap().count()
}

#[test]
fn a_finished_dataset_stays_as_it_is() {
    let plan = plan(LabelPlan::ranges(12, 4), TOP_4);
    let dir = tempfile::tempdir().unwrap();
    write_dataset(dir.path(), &plan);
    let before = tree(dir.path());
    let writer = LabelWriter::create_or_resume(dir.path(), plan.clone()).unwrap();
    assert!(writer.missing().unwrap().is_empty());
    writer.finish().unwrap();
    assert_eq!(tree(dir.path()), before);
    assert_eq!(
        before.len(),
        3 + 3 + 3,
        "3 shards, 3 commits, plan, README and manifest: {:?}",
        before.keys()
    );
}

#[test]
fn resuming_after_any_stage_ends_with_the_same_bytes() {
    let plan = plan(LabelPlan::ranges(12, 4), TOP_4);
    let whole = tempfile::tempdir().unwrap();
    write_dataset(whole.path(), &plan);
    let expected = tree(whole.path());

    for stage in 0..7 {
        let dir = tempfile::tempdir().unwrap();
        let writer = LabelWriter::create_or_resume(dir.path(), plan.clone()).unwrap();
        let data = dir.path().join("data");
        if stage >= 1 {
            // Dropped half way.
            let mut shard = writer.shard(0).unwrap();
            shard.push(shard_labels(&plan, 0).remove(0)).unwrap();
        }
        if stage >= 2 {
            write_shard(&writer, 1);
        }
        if stage == 3 {
            // Killed between link and commit.
            fs_err::remove_file(dir.path().join("_softshard/commits/00001.json")).unwrap();
        }
        if stage == 4 {
            // An orphan of an attempt that gave other bytes, and a temporary file of a process that is gone.
            fs_err::write(data.join("labels-00002-of-00003-0123456789ab.parquet"), "other").unwrap();
            fs_err::write(dir.path().join("_softshard/tmp/00000000-1-ff"), "x").unwrap();
        }
        if stage == 5 {
            // A committed file that was damaged later.
            let name = fs_err::read_dir(&data).unwrap().next().unwrap().unwrap().path();
            let mut bytes = fs_err::read(&name).unwrap();
            bytes[100] ^= 1;
            fs_err::write(&name, bytes).unwrap();
            assert_eq!(writer.missing().unwrap(), [0, 1, 2]);
        }
        if stage == 6 {
            // A torn commit, as no local file system leaves it.
            fs_err::write(dir.path().join("_softshard/commits/00001.json"), "{").unwrap();
        }
        write_dataset(dir.path(), &plan);
        assert_eq!(tree(dir.path()), expected, "stage {stage}");
        LabelDataset::open(dir.path()).unwrap();
    }
}

#[test]
fn a_dropped_shard_leaves_nothing() {
    let plan = plan(vec![[0, 3]], TOP_4);
    let dir = tempfile::tempdir().unwrap();
    let writer = LabelWriter::create_or_resume(dir.path(), plan.clone()).unwrap();
    let mut shard = writer.shard(0).unwrap();
    shard.push(labels(&mut Random(0), &plan)).unwrap();
    assert_eq!(files(&dir.path().join("_softshard/tmp")), 1);
    drop(shard);
    assert_eq!(files(&dir.path().join("_softshard/tmp")), 0);
    assert_eq!(files(&dir.path().join("data")), 0);
    assert_eq!(writer.missing().unwrap(), [0]);
}

#[test]
fn of_two_writers_one_commits_and_both_carry_on() {
    for different in [false, true] {
        let plan = plan(vec![[0, 3]], TOP_4);
        let dir = tempfile::tempdir().unwrap();
        let barrier = Barrier::new(4);
        let commits: Vec<Commit> = thread::scope(|scope| {
            let writers: Vec<_> = (0..4)
                .map(|racer| {
                    let (plan, barrier, dir) = (&plan, &barrier, dir.path());
                    scope.spawn(move || {
                        let writer = LabelWriter::create_or_resume(dir, plan.clone()).unwrap();
                        let mut shard = writer.shard(0).unwrap();
                        for mut labels in shard_labels(plan, 0) {
                            if different {
                                labels.source = Some(format!("racer {racer}"));
                            }
                            shard.push(labels).unwrap();
                        }
                        barrier.wait();
                        shard.commit().unwrap()
                    })
                })
                .collect();
            writers.into_iter().map(|writer| writer.join().unwrap()).collect()
        });
        let won: Vec<_> = commits.iter().filter(|commit| matches!(commit, Commit::Won(_))).collect();
        assert_eq!(won.len(), 1, "{commits:?}");
        assert_eq!(files(&dir.path().join("data")), 1);
        assert_eq!(files(&dir.path().join("_softshard/tmp")), 0);
        let writer = LabelWriter::create_or_resume(dir.path(), plan).unwrap();
        writer.finish().unwrap();
        assert_eq!(LabelDataset::open(dir.path()).unwrap().len(), 3);
    }
}

#[test]
fn a_loser_that_comes_after_the_finish_does_no_harm() {
    let plan = plan(vec![[0, 3]], TOP_4);
    let dir = tempfile::tempdir().unwrap();
    let writer = LabelWriter::create_or_resume(dir.path(), plan.clone()).unwrap();
    let mut late = writer.shard(0).unwrap();
    shard_labels(&plan, 0).into_iter().for_each(|labels| late.push(labels).unwrap());
    write_dataset(dir.path(), &plan);
    let before = tree(dir.path());
    assert!(matches!(late.commit().unwrap(), Commit::Lost(_)));
    assert_eq!(tree(dir.path()), before);
}

#[test]
fn another_plan_is_refused_by_the_keys_that_differ() {
    let first = plan(LabelPlan::ranges(12, 4), TOP_4);
    let dir = tempfile::tempdir().unwrap();
    LabelWriter::create_or_resume(dir.path(), first.clone()).unwrap();
    let mut second = LabelPlan { mantissa_bits: 23, ..first };
    second.teacher.dtype = "bf16".to_owned();
    let error = LabelWriter::create_or_resume(dir.path(), second).unwrap_err();
    let path = dir.path().join("_softshard/plan.json");
    let expected = format!(
        "`{}`: expected the plan of this run, found another plan:\n  mantissa_bits: expected 23, found 10\n  \
         teacher.dtype: expected \"bf16\", found \"f32\"\nhint: choose another output folder, or remove this one",
        path.display()
    );
    assert_eq!(error.to_string(), expected);
    assert!(error.is_bad_data());
}

#[test]
fn a_finished_dataset_of_another_plan_stays_even_without_its_private_folder() {
    let plan = plan(LabelPlan::ranges(12, 4), TOP_4);
    let dir = tempfile::tempdir().unwrap();
    write_dataset(dir.path(), &plan);
    fs_err::remove_dir_all(dir.path().join("_softshard")).unwrap();
    let before = tree(dir.path());
    let other = LabelPlan { seed: 8, ..plan.clone() };
    let error = LabelWriter::create_or_resume(dir.path(), other).unwrap_err();
    assert!(error.is_bad_data(), "{error}");
    let said = error.to_string();
    assert!(said.contains("manifest.json`: expected the plan of this run"), "{said}");
    assert!(said.contains("seed: expected 8, found 7"), "{said}");
    let manifest = dir.path().join("manifest.json");
    let bytes = fs_err::read(&manifest).unwrap();
    fs_err::write(&manifest, "{}").unwrap();
    let error = LabelWriter::create_or_resume(dir.path(), plan.clone()).unwrap_err();
    assert!(error.to_string().contains("manifest.json`: expected format \"softshard-labels\""), "{error}");
    fs_err::write(&manifest, bytes).unwrap();
    assert_eq!(tree(dir.path()), before, "nothing was written");
    assert!(!dir.path().join("_softshard").exists());

    write_dataset(dir.path(), &plan);
    assert_eq!(LabelDataset::open(dir.path()).unwrap().len(), 12);
}

#[test]
fn a_folder_of_others_is_not_written_into() {
    let plan = plan(LabelPlan::ranges(4, 4), TOP_4);
    for name in ["README.md", "data/train.parquet", "notes.txt"] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(name);
        fs_err::create_dir_all(file.parent().unwrap()).unwrap();
        fs_err::write(&file, "theirs").unwrap();
        let refusals = [
            LabelWriter::create_or_resume(dir.path(), plan.clone()).map(drop),
            LabelWriter::is_begun(dir.path()).map(drop),
        ];
        for error in refusals.map(Result::unwrap_err) {
            let said = error.to_string();
            assert!(error.is_bad_data() && said.contains(&format!("found `{name}`")), "{said}");
        }
        assert!(!dir.path().join("_softshard").exists());
    }
    // What begins with a dot does no harm.
    let dir = tempfile::tempdir().unwrap();
    fs_err::write(dir.path().join(".gitattributes"), "").unwrap();
    assert!(!LabelWriter::is_begun(dir.path()).unwrap());
    write_dataset(dir.path(), &plan);
    fs_err::write(dir.path().join("notes.txt"), "ours").unwrap();
    assert!(LabelWriter::is_begun(dir.path()).unwrap());
    write_dataset(dir.path(), &plan);
}

#[test]
fn an_unfinished_dataset_is_neither_finished_nor_opened() {
    let plan = plan(LabelPlan::ranges(12, 1), TOP_4);
    let dir = tempfile::tempdir().unwrap();
    let writer = LabelWriter::create_or_resume(dir.path(), plan.clone()).unwrap();
    write_shard(&writer, 3);
    let error = writer.finish().unwrap_err();
    assert!(matches!(&error, Error::MissingShards { missing, .. } if missing.len() == 11));
    let expected = format!(
        "`{}`: expected 12 committed shards, found 1; missing 0, 1, 2, 4, 5, 6, 7, 8 and 3 more\n\
         hint: run the same command again, it resumes with the missing shards",
        dir.path().display()
    );
    assert_eq!(error.to_string(), expected);
    let expected = format!(
        "`{}`: expected a finished dataset, found no manifest.json\n\
         hint: the dataset is not finished, or this is not a dataset: run the stage that writes it",
        dir.path().display()
    );
    assert_eq!(LabelDataset::open(dir.path()).unwrap_err().to_string(), expected);
}

#[test]
fn a_shard_holds_its_whole_range() {
    let plan = plan(vec![[0, 2]], TOP_4);
    let dir = tempfile::tempdir().unwrap();
    let writer = LabelWriter::create_or_resume(dir.path(), plan.clone()).unwrap();
    let mut shard = writer.shard(0).unwrap();
    shard.push(labels(&mut Random(0), &plan)).unwrap();
    assert_eq!(shard.commit().unwrap_err().to_string(), "labels of shard 0: expected 2 sequences, found 1");
}

#[test]
fn sequences_are_replaced_only_by_other_content() {
    let write = |dir: &std::path::Path, seed, per_shard| {
        let mut writer = SequenceWriter::create(dir, crate::common::info(), per_shard).unwrap();
        let mut random = Random(seed);
        (0..10).for_each(|_| writer.push(sequence(&mut random, crate::common::VOCABULARY)).unwrap());
        writer
    };
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 1, 4).finish().unwrap();
    let first = tree(dir.path());
    assert_eq!(first.len(), 4, "{:?}", first.keys());

    // Left unfinished: nothing changes.
    drop(write(dir.path(), 2, 3));
    assert_eq!(tree(dir.path()), first);
    // The same again: the same bytes.
    write(dir.path(), 1, 4).finish().unwrap();
    assert_eq!(tree(dir.path()), first);
    // Other content: only that remains.
    write(dir.path(), 2, 3).finish().unwrap();
    let second = tree(dir.path());
    assert_eq!(second.len(), 5, "{:?}", second.keys());
    assert_eq!(SequenceDataset::open(dir.path()).unwrap().len(), 10);
}

/// Covers resuming a finished dataset: its manifest and the sizes of its files are looked at, in a time that grows with the shards.
#[test]
fn ten_thousand_finished_shards_are_resumed_in_a_moment() {
    // A second on a quiet machine, and tests run beside each other.
    const MOST: Duration = Duration::from_secs(4);
    for shards in [1_000, 10_000] {
        let plan = plan(LabelPlan::ranges(shards, 1), TOP_4);
        let dir = tempfile::tempdir().unwrap();
        let manifest = made_up_dataset(dir.path(), &plan);
        let began = Instant::now();
        let writer = LabelWriter::create_or_resume(dir.path(), plan).unwrap();
        assert!(writer.missing().unwrap().is_empty());
        let looked = began.elapsed();
        assert_eq!(writer.finish().unwrap(), manifest);
        eprintln!("{shards} shards: {looked:?} to resume, {:?} with finish", began.elapsed());
        assert!(began.elapsed() < MOST, "{shards} shards: {:?}", began.elapsed());
    }
}

/// Manifest, card and files of a finished dataset whose shards hold no labels: nobody looks.
fn made_up_dataset(dir: &std::path::Path, plan: &LabelPlan) -> LabelsManifest {
    fs_err::create_dir(dir.join("data")).unwrap();
    let total = plan.shards.len();
    let shards: Vec<ShardRecord> = (0..total)
        .map(|shard| {
            let content = format!("shard {shard}");
            let blake3 = blake3::hash(content.as_bytes()).to_hex().to_string();
            let file = format!("labels-{shard:05}-of-{total:05}-{}.parquet", &blake3[..12]);
            fs_err::write(dir.join("data").join(&file), &content).unwrap();
            let bytes = u64::try_from(content.len()).unwrap();
            ShardRecord {
                file,
                rows: 1,
                input_tokens: 3,
                labelled_tokens: 2,
                bytes,
                sha256: blake3.clone(),
                blake3,
            }
        })
        .collect();
    let rows = u64::try_from(total).unwrap();
    let manifest = LabelsManifest {
        format: LabelsManifest::FORMAT.to_owned(),
        version: plan.version,
        plan_blake3: plan.blake3(),
        plan: plan.clone(),
        rows,
        input_tokens: 3 * rows,
        labelled_tokens: 2 * rows,
        shards,
    };
    let mut bytes = serde_json::to_vec_pretty(&manifest).unwrap();
    bytes.push(b'\n');
    fs_err::write(dir.join("manifest.json"), bytes).unwrap();
    manifest
}

/// Covers what the look at a finished dataset does not see, and what it does.
#[test]
fn a_finished_dataset_is_judged_by_sizes_and_an_unfinished_one_by_hashes() {
    let plan = plan(LabelPlan::ranges(12, 4), TOP_4);
    let dir = tempfile::tempdir().unwrap();
    write_dataset(dir.path(), &plan);
    let before = tree(dir.path());
    let writer = LabelWriter::open(dir.path()).unwrap();
    let data = dir.path().join("data");
    let file = fs_err::read_dir(&data).unwrap().next().unwrap().unwrap().path();
    let good = fs_err::read(&file).unwrap();
    let mut damaged = good.clone();
    damaged[100] ^= 1;
    fs_err::write(&file, &damaged).unwrap();
    assert_eq!(writer.missing().unwrap(), [0; 0]);
    assert!(LabelDataset::open(dir.path()).is_err(), "who reads it finds it");
    for manifest_too in [true, false] {
        // Without the manifest by its hash; with it by its size.
        if manifest_too {
            fs_err::remove_file(dir.path().join("manifest.json")).unwrap();
        } else {
            fs_err::write(&file, &damaged[..99]).unwrap();
        }
        assert_eq!(writer.missing().unwrap().len(), 1);
        write_dataset(dir.path(), &plan);
        assert_eq!(tree(dir.path()), before);
        assert_eq!(writer.uncommitted().unwrap(), [0; 0]);
    }
}
