//! Trust in labels: what a run will cost before it begins, whether labels are their teacher's, and a page to share.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;
use softshard_e2e::{Said, World, run, softshard};
use softshard_labels::{LabelDataset, LabelPlan, LabelWriter, SequenceLabels};

fn text(path: PathBuf) -> String {
    path.to_str().expect("a path of ASCII").to_owned()
}

/// `softshard labels COMMAND recipe.toml ARGUMENTS…`.
fn labels(world: &World, command: &str, arguments: &[&str]) -> Said {
    let recipe = text(world.path("recipe.toml"));
    softshard(&[&["labels", command, &recipe], arguments].concat())
}

fn json(said: &Said) -> Value {
    serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{error}: {}", said.stdout))
}

/// Nothing is rounded, so that labels can be written again.
const EXACT: [&str; 2] = ["labels.mantissa_bits=23", "labels.position_mantissa_bits=23"];

#[test]
fn an_audit_passes_true_labels_of_every_selection() {
    let world = World::with_teacher();
    let selections = [
        r#"{ kind = "top_k", k = 16 }"#,
        r#"{ kind = "top_p", p = 0.9, k = 64 }"#,
        r#"{ kind = "sampled", draws = 50 }"#,
        r#"{ kind = "top_k_sampled", k = 8, draws = 20 }"#,
    ];
    for (index, selection) in selections.into_iter().enumerate() {
        let set = [format!("labels.selection={selection}"), format!("output.labels=labels-{index}")];
        // Other batches than those of the audit.
        let overrides = [&set[0], &set[1], "teacher.max_tokens_per_batch=300", "teacher.rows_per_chunk=5"];
        world.run("teacher-labels", &overrides).succeeded();
        let said =
            labels(&world, "audit", &["--set", &set[1], "--positions", "300", "--seed", "4"]).succeeded();
        assert!(said.stdout.contains("scored again: 300 of "), "{}", said.stdout);
        assert_eq!(
            said.stdout.matches("no deviation beyond the bound at these ").count(),
            3,
            "{}",
            said.stdout
        );
    }
    let one = text(world.path("run/labels-2/valid"));
    let found = json(&labels(&world, "audit", &["--labels", &one, "--json"]).succeeded());
    assert_eq!(found.as_array().map(Vec::len), Some(1));
    assert!(found[0]["columns"].as_array().is_some_and(|columns| columns.len() >= 5), "{found}");
}

#[test]
fn an_audit_finds_labels_of_another_teacher_and_of_another_position() {
    let world = World::with_teacher();
    world.run("teacher-labels", &EXACT).succeeded();
    let of_other = labels_of_a_changed_teacher(&world);
    labels(&world, "audit", &["--labels", &text(world.path("run/other/train"))])
        .failed(3, &["expected the teacher of the labels, found another", "weights_blake3: expected "]);

    let train = LabelDataset::open(world.path("run/labels/train")).expect("labels");
    let plan = &train.manifest().plan;
    let forged = world.path("forged");
    write(&forged, plan, &of_other);
    let said = labels(&world, "audit", &["--labels", &text(forged)])
        .failed(3, &["/forged` row ", " sequence ", " position ", " of the live teacher, found "]);
    assert!(said.stdout.contains("← beyond"), "{}", said.stdout);

    let mut rows: Vec<SequenceLabels> = train.iter().map(|row| row.expect("labels")).collect();
    let position = shift(&mut rows[7], 2);
    let shifted = world.path("shifted");
    write(&shifted, plan, &rows);
    let key = train.key(7);
    let place = format!("/shifted` row 7 sequence {key} ");
    labels(&world, "audit", &["--labels", &text(shifted), "--positions", "1000000"])
        .failed(3, &[&place, &format!(" position {position} ")]);
}

/// Gives the drawn tokens of one position each other's counts, so that their mass stays, where that moves more draws than may
/// move at a position, and fewer than may move at all together.
fn forge_draws(labels: &mut SequenceLabels) -> Option<i32> {
    let mut start = 0;
    for (index, count) in labels.counts.iter().enumerate() {
        let here = start..start + usize::try_from(*count).expect("small");
        start = here.end;
        let (ids, counts) = (&labels.token_ids[here.clone()], &labels.sample_counts[here.clone()]);
        let moved: i32 = counts.iter().zip(counts.iter().rev()).map(|(one, other)| (one - other).abs()).sum();
        if !(3..8).contains(&(moved / 2)) {
            continue;
        }
        let mut draws: Vec<(i32, i32)> = counts.iter().rev().copied().zip(ids.iter().copied()).collect();
        draws.sort_by_key(|(count, id)| (-count, *id));
        for (at, (count, id)) in here.zip(draws) {
            (labels.sample_counts[at], labels.token_ids[at]) = (count, id);
        }
        return Some(labels.positions[index]);
    }
    None
}

/// All other positions are true, so that no sum over them tells.
#[test]
fn an_audit_finds_forged_draws_of_one_position() {
    let world = World::with_teacher();
    let sampled = r#"labels.selection={ kind = "sampled", draws = 100 }"#;
    world.run("teacher-labels", &[&EXACT[..], &[sampled]].concat()).succeeded();
    let train = LabelDataset::open(world.path("run/labels/train")).expect("labels");
    let mut rows: Vec<SequenceLabels> = train.iter().map(|row| row.expect("labels")).collect();
    let forged = rows.iter_mut().enumerate().find_map(|(row, labels)| Some((row, forge_draws(labels)?)));
    let (row, position) = forged.expect("a position with draws of several tokens");
    let folder = world.path("forged");
    write(&folder, &train.manifest().plan, &rows);
    let said = labels(&world, "audit", &["--labels", &text(folder), "--positions", "1000000"])
        .failed(3, &[&format!("/forged` row {row} "), &format!(" position {position} sample_counts token ")]);
    assert_eq!(
        said.stdout.matches("← beyond").count(),
        1,
        "their sum stays below its bound: {}",
        said.stdout
    );
}

/// Labels of a teacher of which one weight is 1 % larger.
fn labels_of_a_changed_teacher(world: &World) -> Vec<SequenceLabels> {
    let path = copy_of_the_teacher(world, "changed").join("model.safetensors");
    let mut bytes = fs::read(&path).expect("weights are there");
    let header = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"))).expect("small");
    let tensors: Value = serde_json::from_slice(&bytes[8..8 + header]).expect("a header");
    let start = tensors["model.norm.weight"]["data_offsets"][0].as_u64().expect("an offset");
    let at = 8 + header + usize::try_from(start).expect("small");
    let weight = f32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
    bytes[at..at + 4].copy_from_slice(&(weight * 1.01).to_le_bytes());
    fs::write(path, bytes).expect("weights are written");
    let mut stage = world.stage("teacher-labels", &EXACT);
    run(stage.args(["--set", "teacher.model=changed", "--set", "output.labels=other"])).succeeded();
    let other = LabelDataset::open(world.path("run/other/train")).expect("labels");
    other.iter().map(|row| row.expect("labels")).collect()
}

fn copy_of_the_teacher(world: &World, name: &str) -> PathBuf {
    let copy = world.path(name);
    fs::create_dir(&copy).expect("a folder is made");
    for (file, bytes) in world.files("run/teacher/model") {
        fs::write(copy.join(file), bytes).expect("a file is copied");
    }
    copy
}

/// Writes labels that claim to be of `plan`.
fn write(folder: &Path, plan: &LabelPlan, rows: &[SequenceLabels]) {
    let writer = LabelWriter::create_or_resume(folder, plan.clone()).expect("a folder is made");
    for (index, range) in plan.shards.iter().enumerate() {
        let mut shard = writer.shard(index).expect("a shard");
        let [start, end] = range.map(|row| usize::try_from(row).expect("small"));
        rows[start..end].iter().for_each(|row| shard.push(row.clone()).expect("valid labels"));
        shard.commit().expect("a commit");
    }
    writer.finish().expect("a dataset");
}

/// Puts the labels of the next position at position `index`, such that no writer can tell.
fn shift(labels: &mut SequenceLabels, index: usize) -> i32 {
    let gold = labels.gold()[index];
    let entries = usize::try_from(labels.counts[index]).expect("small");
    let (start, next) = (index * entries, (index + 1) * entries);
    labels.token_ids.copy_within(next..next + entries, start);
    labels.log_probs.copy_within(next..next + entries, start);
    let mut columns = vec![&mut labels.log_sum_exp, &mut labels.tail_log_mass, &mut labels.entropy];
    columns.extend(labels.log_partitions.iter_mut().chain(&mut labels.tail_log_masses));
    for column in columns {
        column[index] = column[index + 1];
    }
    let kept = &labels.token_ids[start..next];
    let entry = kept.iter().position(|id| *id == gold);
    labels.gold_log_prob[index] = match entry {
        Some(entry) => labels.log_probs[start + entry],
        None => labels.log_probs[next - 1] - 1.0,
    };
    labels.positions[index]
}

#[test]
fn a_plan_predicts_what_a_run_writes() {
    let world = World::with_teacher();
    let said = labels(&world, "plan", &["--sample", "4"]).succeeded();
    for part in ["top_k 16 *", "top_k 128", "top_k_sampled 16, 50 draws", "tokens/s", "suggestion: "] {
        assert!(said.stdout.contains(part), "expected {part:?} in:\n{}", said.stdout);
    }
    labels(&world, "plan", &["--sample", "0"]).failed(2, &["expected a whole number above 0"]);

    let config = copy_of_the_teacher(&world, "short").join("config.json");
    let mut short: Value = serde_json::from_slice(&fs::read(&config).expect("a model")).expect("JSON");
    short["max_position_embeddings"] = 16.into();
    fs::write(config, short.to_string()).expect("the model is written");
    labels(&world, "plan", &["--set", "teacher.model=short"])
        .failed(3, &["expected at most the 16 positions of the teacher, found "]);

    let data = text(world.path("more"));
    softshard(&["demo-data", &data, "--rows", "400", "--vocab-size", "400"]).succeeded();
    let set = [
        "data.instructions=more/instructions.jsonl",
        "output.sequences=more",
        "labels.sequences_per_shard=150",
    ];
    world.run("prepare", &set).succeeded();
    let arguments: Vec<&str> = set.iter().flat_map(|value| ["--set", value]).collect();
    let arguments = [&arguments[..], &["--sample", "20", "--json"]].concat();
    let found = json(&labels(&world, "plan", &arguments).succeeded());
    let sample = found["sample"]["labelled_tokens"].as_u64().expect("a number");
    assert!((2000..3000).contains(&sample), "{sample}");
    for (name, selection) in
        [("top", r#"{"kind":"top_k","k":16}"#), ("sampled", r#"{"kind":"sampled","draws":50}"#)]
    {
        let wanted: Value = serde_json::from_str(selection).expect("JSON");
        let table = selection.replace("\":", "\" = ");
        let selected = [format!("labels.selection={table}"), format!("output.labels={name}")];
        world.run("teacher-labels", &[&set[..], &[&selected[0], &selected[1]]].concat()).succeeded();
        let all = found["selections"].as_array().expect("a list");
        let one = all.iter().find(|one| one["selection"] == wanted);
        predicts(&world, name, one.unwrap_or_else(|| panic!("{wanted} in {found}")));
    }
}

/// Fails unless `predicted` is what was written to `run/NAME`.
fn predicts(world: &World, name: &str, predicted: &Value) {
    let number = |value: &Value| value.as_f64().expect("a number");
    let error = number(&predicted["relative_error"]);
    assert!(error > 0.0 && error < 0.2, "{name}: ± {error}");
    let (mut all, mut all_written) = (0.0, 0.0);
    for (index, split) in ["train", "valid", "test"].into_iter().enumerate() {
        let dataset = text(world.path(&format!("run/{name}/{split}")));
        let stats = json(&softshard(&["labels", "stats", &dataset, "--json"]).succeeded());
        all += number(&predicted["bytes"][index]);
        all_written += number(&stats["bytes"]);
        let (mass, whole) = (number(&predicted["retained_mass"]), number(&stats["retained_mass"]["mean"]));
        assert!((mass - whole).abs() < 0.02, "{name} {split}: {mass}, {whole}");
    }
    // The sample has a fixed seed: it is not one of the 5 % that miss.
    let within = (all_written - all).abs() <= error * all;
    assert!(within, "{name}: {all} bytes predicted, {all_written} written, ± {error}");
}

#[test]
fn a_page_shows_what_is_known_and_nothing_else() {
    let world = World::with_teacher();
    world.run("teacher-labels", &[]).succeeded();
    let page = |labels: &str| {
        let (labels, page) = (text(world.path(labels)), text(world.path("page.html")));
        let said = softshard(&["labels", "stats", &labels, "--html", &page]).succeeded();
        assert!(said.stdout.ends_with(&format!("page: {page}\n")), "{}", said.stdout);
        let html = fs::read_to_string(page).expect("a page");
        assert!(html.len() < 100_000, "{} bytes", html.len());
        for outside in ["<script", "src=", "href=", "://", "NaN", "inf"] {
            assert!(!html.contains(outside), "{outside}");
        }
        html
    };
    let html = page("run/labels/train");
    let manifest =
        blake3::hash(&fs::read(world.path("run/labels/train/manifest.json")).expect("a manifest")).to_hex();
    for part in [
        "<h1>",
        "run/labels/train",
        "bytes per labelled token",
        "log_partition_t2",
        "<b>Entropy.</b>",
        "<b>Retained mass.</b>",
        "Each of the ",
        "<b>Reliability.</b>",
        "calibration error (ECE)",
        "negative log-likelihood",
        "the 16 most probable tokens",
        manifest.as_str(),
    ] {
        assert!(html.contains(part), "expected {part:?} in:\n{html}");
    }
    let sampled = r#"labels.selection={ kind = "sampled", draws = 20 }"#;
    world
        .run("teacher-labels", &[sampled, r#"labels.omit=["gold_log_prob"]"#, "output.labels=sampled"])
        .succeeded();
    let html = page("run/sampled/train");
    for part in [
        "the tokens of 20 draws",
        "Columns left out</th><td><code>gold_log_prob</code>",
        "probability of the drawn tokens",
        "<b>Entries per position.</b>",
    ] {
        assert!(html.contains(part), "expected {part:?} in:\n{html}");
    }
    for unknown in ["Reliability", "ECE", "top-1", "log-likelihood"] {
        assert!(!html.contains(unknown), "{unknown} cannot be known");
    }
}
