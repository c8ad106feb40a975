//! Datasets in an object store: here a map in memory, with the races and losses that a real one has.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::{fmt, io};

use crate::common::{TOP_4, plan, shard_labels, tree, write_dataset, write_shard};
use softshard_labels::{Commit, Error, LabelPlan, LabelWriter, Output, Store};

/// Objects, how many were uploaded, and one that another writer will name when an object is removed.
#[derive(Debug, Default)]
struct Memory(Mutex<BTreeMap<String, Vec<u8>>>, AtomicUsize, Mutex<Option<String>>);

impl fmt::Display for Memory {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "memory://a")
    }
}

impl Store for Memory {
    fn get(&self, key: &str, _: u64) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.lock().unwrap().get(key).cloned())
    }
    fn size(&self, key: &str) -> io::Result<Option<u64>> {
        Ok(self.0.lock().unwrap().get(key).map(|bytes| bytes.len() as u64))
    }
    fn create(&self, key: &str, bytes: &[u8]) -> io::Result<bool> {
        let mut objects = self.0.lock().unwrap();
        let is_new = !objects.contains_key(key);
        if is_new {
            objects.insert(key.to_owned(), bytes.to_owned());
        }
        Ok(is_new)
    }
    fn put(&self, key: &str, bytes: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap().insert(key.to_owned(), bytes.to_owned());
        Ok(())
    }
    fn upload(&self, key: &str, file: &Path) -> io::Result<()> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.put(key, &fs_err::read(file)?)
    }
    fn list(&self, folder: &str) -> io::Result<Vec<(String, u64)>> {
        let below = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let objects = self.0.lock().unwrap();
        let found = objects.iter().filter(|(key, _)| key.starts_with(&below));
        Ok(found.map(|(key, bytes)| (key.clone(), bytes.len() as u64)).collect())
    }
    fn delete(&self, key: &str) -> io::Result<()> {
        self.0.lock().unwrap().remove(key);
        let late = self.2.lock().unwrap().take();
        late.map_or(Ok(()), |late| self.put(&late, b"late"))
    }
}

/// A store and the place of a dataset in it.
fn store() -> (Arc<Memory>, Output) {
    let memory = Arc::new(Memory::default());
    (memory.clone(), Output::Store(memory, String::new()).join("train"))
}

/// Objects of the dataset, without what tells attempts apart: as `tree` gives files.
fn objects(memory: &Memory) -> BTreeMap<String, Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    for (key, bytes) in &*memory.0.lock().unwrap() {
        let path = folder.path().join(key.strip_prefix("train/").expect("below the place"));
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, bytes).unwrap();
    }
    tree(folder.path())
}

fn whole(plan: &LabelPlan) -> BTreeMap<String, Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    write_dataset(folder.path(), plan);
    tree(folder.path())
}

fn write_missing(output: &Output, plan: &LabelPlan) -> usize {
    let writer = LabelWriter::create_or_resume(output, plan.clone()).unwrap();
    let missing = writer.missing().unwrap();
    missing.iter().for_each(|shard| drop(write_shard(&writer, *shard)));
    writer.finish().unwrap();
    missing.len()
}

#[test]
fn a_store_gets_the_bytes_of_a_folder_and_resumes() {
    let plan = plan(LabelPlan::ranges(12, 4), TOP_4);
    let (memory, output) = store();
    assert!(!LabelWriter::is_begun(&output).unwrap());
    assert_eq!(write_missing(&output, &plan), 3);
    assert!(LabelWriter::is_begun(&output).unwrap());
    let expected = whole(&plan);
    assert_eq!(objects(&memory), expected);
    assert_eq!(write_missing(&output, &plan), 0);

    // Not finished: the commits count, and what they name must be there with its size.
    let data = |memory: &Memory| memory.list("train/data").unwrap().remove(1).0;
    for (damage, missing) in
        [(None, 0), (Some("train/_softshard/commits/00001.json".to_owned()), 1), (Some(data(&memory)), 1)]
    {
        memory.delete("train/manifest.json").unwrap();
        if let Some(key) = damage {
            memory.delete(&key).unwrap();
        }
        memory.put("train/data/labels-00002-of-00003-0123456789ab.parquet", b"an orphan").unwrap();
        assert_eq!(LabelWriter::open(&output).unwrap().missing_of(2..3).unwrap(), [0; 0]);
        assert_eq!(write_missing(&output, &plan), missing);
        assert_eq!(objects(&memory), expected);
    }

    // Finished, but a file has another size: every shard is looked at.
    memory.put(&data(&memory), b"cut").unwrap();
    assert_eq!(write_missing(&output, &plan), 1);
    assert_eq!(objects(&memory), expected);
}

#[test]
fn the_loser_of_a_commit_removes_its_own_object_alone() {
    let plan = plan(vec![[0, 3]], TOP_4);
    for different in [false, true] {
        let (memory, output) = store();
        let [first, second] = [0, 1].map(|racer| {
            let writer = LabelWriter::create_or_resume(&output, plan.clone()).unwrap();
            let mut shard = writer.shard(0).unwrap();
            for mut labels in shard_labels(&plan, 0) {
                if different {
                    labels.source = Some(format!("racer {racer}"));
                }
                shard.push(labels).unwrap();
            }
            shard.finish().unwrap()
        });
        let Commit::Won(record) = first.commit().unwrap() else { panic!("the first wins") };
        assert_eq!(second.commit().unwrap(), Commit::Lost(record.clone()));
        assert_eq!(memory.1.load(Ordering::Relaxed), 1, "what is late is not uploaded");
        let data = memory.list("train/data").unwrap();
        assert_eq!(data, [(format!("train/data/{}", record.file), record.bytes)]);
    }
}

#[test]
fn a_late_object_does_not_hinder_the_end() {
    let plan = plan(LabelPlan::ranges(12, 4), TOP_4);
    let (memory, output) = store();
    let orphan = |hash: &str| format!("train/data/labels-00002-of-00003-{hash}.parquet");
    LabelWriter::create_or_resume(&output, plan.clone()).unwrap();
    memory.put(&orphan("0123456789ab"), b"an orphan").unwrap();
    *memory.2.lock().unwrap() = Some(orphan("ba9876543210"));
    assert_eq!(write_missing(&output, &plan), 3);
    assert!(memory.2.lock().unwrap().is_none());
    assert_eq!(objects(&memory), whole(&plan));
}

#[test]
fn other_plans_and_other_objects_are_refused() {
    let good = plan(LabelPlan::ranges(12, 4), TOP_4);
    let (memory, output) = store();
    let error = LabelWriter::open(&output).unwrap_err().to_string();
    assert!(error.starts_with("`memory://a/train`: expected a label dataset that was begun"), "{error}");
    memory.put("train/notes.txt", b"mine").unwrap();
    let error = LabelWriter::create_or_resume(&output, good.clone()).unwrap_err().to_string();
    assert!(error.contains("found `train/notes.txt`"), "{error}");
    memory.delete("train/notes.txt").unwrap();
    write_missing(&output, &good);
    let before = objects(&memory);
    let error = LabelWriter::create_or_resume(&output, plan(LabelPlan::ranges(12, 3), TOP_4)).unwrap_err();
    assert!(
        matches!(&error, Error::OtherPlan { .. }) && error.to_string().contains("_softshard/plan.json"),
        "{error}"
    );
    assert_eq!(objects(&memory), before);

    // The plan is gone: the manifest has it.
    memory.delete("train/_softshard/plan.json").unwrap();
    assert_eq!(LabelWriter::open(&output).unwrap().plan(), &good);
}
