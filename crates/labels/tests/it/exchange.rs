//! Labels to and from other programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde_json::{Value, json};
use softshard_labels::{
    ColumnMap, DistillKitConfig, Error, ImportSource, ImportTarget, Imported, LabelDataset, LabelDiff,
    LabelPlan, LabelWriter, OptionalColumn, PositionRule, Selection, TeacherIdentity, Tokenizer, export_hf,
    export_jsonl, import, import_jsonl,
};

use crate::common::{Random, TOP_4, plan, tokenizer, tree, write_dataset};

static GO: AtomicBool = AtomicBool::new(false);
/// A sum of six products in single precision, of which the greatest are about 100.
const FITTED: f64 = 3e-5;

fn target(vocab_size: u32) -> ImportTarget {
    ImportTarget {
        tokenizer: Tokenizer { vocab_size, ..tokenizer() },
        template: "alpaca".to_owned(),
        split: "train".to_owned(),
        teacher: TeacherIdentity::unverified("some/teacher", "test", vocab_size),
        top_p: None,
        approximate_tail: false,
        mantissa_bits: 23,
        sequences_per_shard: 2,
    }
}

fn columns(pairs: &[(&str, &str)], rule: PositionRule) -> ColumnMap {
    let pairs = pairs.iter().map(|(key, column)| ((*key).to_owned(), (*column).to_owned()));
    ColumnMap::new(pairs, rule, false).unwrap()
}

#[track_caller]
fn refused(result: Result<Imported, Error>, parts: &[&str]) {
    let error = result.unwrap_err();
    assert!(error.is_bad_data(), "{error}");
    let said = error.to_string();
    parts.iter().for_each(|part| assert!(said.contains(part), "expected {part:?} in: {said}"));
}

#[test]
fn jsonl_goes_there_and_back_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let mut omitting = plan(LabelPlan::ranges(5, 3), TOP_4);
    omitting.omit = vec![OptionalColumn::LogSumExp, OptionalColumn::GoldLogProb];
    let mut tempered = plan(LabelPlan::ranges(5, 2), Selection::TopP { p: 0.9, k: 30 });
    tempered.temperatures = vec![1.5, 2.0];
    let all = plan(vec![[7, 9]], Selection::TopK { k: 97 });
    let drawn = plan(LabelPlan::ranges(5, 5), Selection::Sampled { draws: 20 });
    let hybrid = plan(LabelPlan::ranges(5, 5), Selection::TopKSampled { k: 3, draws: 9 });
    for (index, plan) in [omitting, tempered, all, drawn, hybrid].into_iter().enumerate() {
        let [whole, file, back] =
            ["whole", "labels.jsonl", "back"].map(|name| folder.path().join(format!("{index}-{name}")));
        write_dataset(&whole, &plan);
        export_jsonl(&LabelDataset::open(&whole).unwrap(), &file, &GO).unwrap();
        let done = import_jsonl(&back, &file, None, &GO).unwrap();
        assert_eq!(done.written, plan.shards.len());
        assert_eq!(tree(&back), tree(&whole));
        for gone in ["manifest.json", "_softshard/commits/00000.json"] {
            fs::remove_file(back.join(gone)).unwrap();
        }
        assert_eq!(import_jsonl(&back, &file, None, &GO).unwrap().written, 1);
        assert_eq!(tree(&back), tree(&whole));
    }
}

#[test]
fn jsonl_that_was_changed_is_refused_by_line() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, file, back] = ["whole", "labels.jsonl", "back"].map(|name| folder.path().join(name));
    write_dataset(&whole, &plan(LabelPlan::ranges(3, 3), TOP_4));
    export_jsonl(&LabelDataset::open(&whole).unwrap(), &file, &GO).unwrap();
    let text = fs::read_to_string(&file).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let try_with = |change: &dyn Fn(&mut Value)| {
        let mut lines = lines.clone();
        change(&mut lines[1]);
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        fs::write(&file, text).unwrap();
        import_jsonl(&back, &file, None, &GO)
    };
    refused(
        try_with(&|line| line["input_ids"][0] = json!(96)),
        &["labels.jsonl` line 2 sequence_key: expected "],
    );
    refused(
        try_with(&|line| line["log_probs"][0][0] = json!(0.5)),
        &["` line 2 position ", " log_probs[0]: expected at most 0 and finite, found 0.5"],
    );
    refused(
        try_with(&|line| line["token_ids"][0] = json!([1])),
        &["line 2 log_probs[0]: expected 1 values, found 4"],
    );
    refused(
        try_with(&|line| line["surprise"] = json!(1)),
        &["line 2: expected a JSON object", "unknown field `surprise`"],
    );
    fs::write(&file, text.lines().next().unwrap()).unwrap();
    refused(import_jsonl(&back, &file, None, &GO), &["expected 3 lines, as the manifest says, found 1"]);
    refused(import_jsonl(&back, &file, Some(Path::new("/no/such")), &GO), &["--manifest"]);
    assert!(!back.exists(), "nothing is written");
}

#[test]
fn an_import_goes_on_only_with_the_same_labels() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, file, back] = ["whole", "labels.jsonl", "back"].map(|name| folder.path().join(name));
    let made = write_dataset(&whole, &plan(LabelPlan::ranges(4, 2), TOP_4));
    export_jsonl(&LabelDataset::open(&whole).unwrap(), &file, &GO).unwrap();
    let text = fs::read_to_string(&file).unwrap();
    let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    lines[3]["source"] = json!("someone else");
    fs::write(&file, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    let expected =
        format!("shard 1: expected BLAKE3 {} with 2 rows, as the manifest says", made.shards[1].blake3);
    refused(import_jsonl(&back, &file, None, &GO), &[&expected]);
    assert!(!back.join("manifest.json").exists() && !back.join("_softshard/commits/00001.json").exists());
    fs::write(&file, &text).unwrap();
    assert_eq!(import_jsonl(&back, &file, None, &GO).unwrap().written, 1);
    assert_eq!(tree(&back), tree(&whole));

    // Labels of others have no manifest: what the rows hold is part of the plan.
    let out = folder.path().join("out");
    let mut response = vllm();
    read(&completions(folder.path(), &[response.clone()]), 2, &out).unwrap();
    read(&completions(folder.path(), &[response.clone()]), 2, &out).unwrap();
    response["choices"][0]["prompt_logprobs"][1]["7"]["logprob"] = json!(-1.6);
    let error = read(&completions(folder.path(), &[response]), 2, &out).unwrap_err().to_string();
    assert!(error.contains("sequences: expected "), "{error}");
}

#[test]
fn what_changes_between_the_readings_ends_an_import() {
    let folder = tempfile::tempdir().unwrap();
    let answer = json!({"prompt_token_ids": [4], "choices": [{"message": {"content": " the"}, "logprobs": {"content": [
        {"token": " the", "logprob": -0.2, "top_logprobs": [{"token": " the", "logprob": -0.2}]}]}}]});
    let files = completions(folder.path(), &[answer]);
    let (file, calls) = (&files[0], std::cell::Cell::new(0));
    let resolve = |_: &str, _: &[&str]| {
        calls.set(calls.get() + 1);
        // As a file would that is written meanwhile.
        Ok(if folder.path().join("out/_softshard/plan.json").exists() { 12 } else { 11 })
    };
    let source = ImportSource::Completions { files: std::slice::from_ref(file), top_k: 1, resolve: &resolve };
    let out = folder.path().join("out");
    refused(
        import(&out, &source, &target(97), &GO),
        &["rows: expected what was there when they were checked"],
    );
    assert!(calls.get() > 1 && !out.join("manifest.json").exists());
    assert!(!out.join("_softshard/commits/00000.json").exists(), "nothing is committed");
}

#[test]
fn the_mass_that_is_said_to_be_reached_is_checked() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, hf] = ["whole", "hf"].map(|name| folder.path().join(name));
    let some = plan(LabelPlan::ranges(9, 9), Selection::TopP { p: 0.2, k: 30 });
    write_dataset(&whole, &LabelPlan { mantissa_bits: 23, position_mantissa_bits: 23, ..some });
    export_hf(&LabelDataset::open(&whole).unwrap(), &hf, &GO).unwrap();
    let files = [hf.join("data/train-00000-of-00001.parquet")];
    let map = columns(
        &[
            ("input_ids", "input_ids"),
            ("token_ids", "teacher_token_ids"),
            ("log_probs", "teacher_log_probs"),
            ("labels", "labels"),
        ],
        PositionRule::This,
    );
    let source = ImportSource::Parquet { files: &files, columns: &map };
    let import_with = |p: f64| {
        let target = ImportTarget { top_p: Some(p), ..target(97) };
        import(&folder.path().join(p.to_string()), &source, &target, &GO)
    };
    refused(
        import_with(0.5),
        &[".parquet` row ", " log_probs: expected a mass of 0.5, as there are fewer than ", ", found 0."],
    );
    import_with(0.2).unwrap();
}

#[test]
fn an_approximate_tail_leaves_a_trace() {
    let config = DistillKitConfig::load(&golden("delta").join("compression_config.yaml")).unwrap();
    let files = [golden("delta").join("data_0.parquet")];
    let source = ImportSource::DistillKit { files: &files, config: &config };
    let folder = tempfile::tempdir().unwrap();
    let target = ImportTarget { approximate_tail: true, ..target(1000) };
    let done = import(folder.path(), &source, &target, &GO).unwrap();
    let teacher = &done.manifest.plan.teacher;
    assert_eq!(teacher.config_blake3, "unverified: test, approximate tail");
    assert!(teacher.has_approximate_tail() && !teacher.is_verified());
    let card = fs::read_to_string(folder.path().join("README.md")).unwrap();
    assert!(card.contains("was computed of them and is approximate") && !card.contains("is exact"), "{card}");
}

#[test]
fn exports_touch_nothing_of_others() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    write_dataset(&whole, &plan(LabelPlan::ranges(3, 3), TOP_4));
    let dataset = LabelDataset::open(&whole).unwrap();
    let [part, file_part] = ["out.part", "labels.jsonl.part"].map(|name| folder.path().join(name));
    fs::create_dir(&part).unwrap();
    fs::write(part.join("theirs"), "theirs").unwrap();
    fs::write(&file_part, "theirs").unwrap();
    export_hf(&dataset, &folder.path().join("out/"), &GO).unwrap();
    export_jsonl(&dataset, &folder.path().join("labels.jsonl"), &GO).unwrap();
    assert!(folder.path().join("out/data/train-00000-of-00001.parquet").exists());
    assert_eq!(fs::read_to_string(part.join("theirs")).unwrap(), "theirs");
    assert_eq!(fs::read_to_string(&file_part).unwrap(), "theirs");
    let names: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 6, "no part stays behind: {names:?}");
    let error = export_hf(&dataset, &file_part, &GO).unwrap_err();
    assert!(error.is_bad_data() && error.to_string().ends_with("found a file"), "{error}");
}

#[test]
fn rows_for_trainers_hold_the_same_labels() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, out, back] = ["whole", "hf", "back"].map(|name| folder.path().join(name));
    let plan = plan(LabelPlan::ranges(7, 3), TOP_4);
    write_dataset(&whole, &plan);
    let dataset = LabelDataset::open(&whole).unwrap();
    export_hf(&dataset, &out, &GO).unwrap();
    let error = export_hf(&dataset, &out, &GO).unwrap_err().to_string();
    assert!(error.contains("expected a folder that is not there or empty"), "{error}");

    let file = out.join("data/train-00000-of-00001.parquet");
    let files = [file];
    let map = [
        ("input_ids", "input_ids"),
        ("token_ids", "teacher_token_ids"),
        ("log_probs", "teacher_log_probs"),
        ("labels", "labels"),
        ("log_sum_exp", "teacher_log_sum_exp"),
        ("tail_log_mass", "teacher_tail_log_mass"),
        ("entropy", "teacher_entropy"),
        ("gold_log_prob", "teacher_gold_log_prob"),
        ("source", "source"),
    ];
    let few = columns(&map[..3], PositionRule::This);
    let source = ImportSource::Parquet { files: &files, columns: &few };
    refused(
        import(&back, &source, &target(97), &GO),
        &["tail_log_mass: expected exact", "rounded", "--approximate-tail"],
    );
    let map = columns(&map, PositionRule::This);
    let source = ImportSource::Parquet { files: &files, columns: &map };
    let target = ImportTarget { approximate_tail: true, mantissa_bits: plan.mantissa_bits, ..target(97) };
    import(&back, &source, &target, &GO).unwrap();
    let back = LabelDataset::open(&back).unwrap();
    let found = LabelDiff::of(&dataset, &back, &GO).unwrap();
    assert_eq!((found.equal, found.different.len()), (7, 0), "{found:?}");
    assert!(!back.manifest().plan.teacher.is_verified());
}

fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/distillkit").join(case)
}

#[test]
fn captures_of_distillkit_decode_as_its_own_code_decodes_them() {
    for case in ["recommended", "budget", "delta", "bins", "residuals", "exact"] {
        let expected: Value =
            serde_json::from_slice(&fs::read(golden(case).join("expected.json")).unwrap()).unwrap();
        let config = DistillKitConfig::load(&golden(case).join("compression_config.yaml")).unwrap();
        assert_eq!(config, serde_json::from_value(expected["config"].clone()).unwrap());
        let files = [golden(case).join("data_0.parquet")];
        let source = ImportSource::DistillKit { files: &files, config: &config };
        let folder = tempfile::tempdir().unwrap();
        if case != "exact" {
            refused(
                import(folder.path(), &source, &target(1000), &GO),
                &["tail_log_mass: ", "--approximate-tail"],
            );
        }
        let target = ImportTarget { approximate_tail: true, ..target(1000) };
        let done =
            import(folder.path(), &source, &target, &GO).unwrap_or_else(|error| panic!("{case}: {error}"));
        // Its last entries describe a token that is not there.
        assert_eq!((done.manifest.rows, done.manifest.labelled_tokens), (2, 4 + 2), "{case}");
        let rows: Result<Vec<_>, _> = LabelDataset::open(folder.path()).unwrap().iter().collect();
        for (labels, expected) in rows.unwrap().iter().zip(expected["rows"].as_array().unwrap()) {
            assert_eq!(json!(labels.input_ids), expected["input_ids"]);
            let positions: Vec<i32> = (1..i32::try_from(labels.input_ids.len()).unwrap()).collect();
            assert_eq!(labels.positions, positions);
            for (place, entries) in labels.entries().enumerate() {
                let list = |key: &str| expected[key][place].as_array().unwrap().clone();
                let mut pairs: Vec<(i64, f64)> = list("token_ids")
                    .iter()
                    .zip(list("log_probs"))
                    .map(|(id, log_prob)| (id.as_i64().unwrap(), log_prob.as_f64().unwrap()))
                    .collect();
                pairs.sort_by(|one, next| next.1.total_cmp(&one.1).then(one.0.cmp(&next.0)));
                assert_eq!(pairs.len(), entries.token_ids.len());
                for ((id, log_prob), (_, expected)) in
                    entries.token_ids.iter().zip(entries.log_probs).zip(&pairs)
                {
                    assert!(
                        (f64::from(*log_prob) - expected).abs() < FITTED,
                        "{case}: {log_prob} and {expected}"
                    );
                    let of_id = pairs.iter().find(|(other, _)| *other == i64::from(*id)).unwrap().1;
                    assert!((f64::from(*log_prob) - of_id).abs() < FITTED, "{case}: id {id}");
                }
            }
        }
    }
}

#[test]
fn packed_captures_are_cut_into_their_documents() {
    let config = DistillKitConfig::load(&golden("exact").join("compression_config.yaml")).unwrap();
    let (files, packed) =
        ([golden("exact").join("data_0.parquet")], [golden("exact").join("packed.parquet")]);
    let folder = tempfile::tempdir().unwrap();
    let rows = |files: &[PathBuf], name: &str| {
        let source = ImportSource::DistillKit { files, config: &config };
        import(&folder.path().join(name), &source, &target(1000), &GO).unwrap();
        let rows: Result<Vec<_>, _> = LabelDataset::open(folder.path().join(name)).unwrap().iter().collect();
        rows.unwrap()
    };
    let (alone, packed) = (rows(&files, "alone"), rows(&packed, "packed"));
    // Packing cuts the tokens off that have no entries: one of the first document. The loss does not count for the last
    // token of the second.
    assert_eq!(packed[0].input_ids, alone[0].input_ids[..4]);
    assert_eq!(
        (packed[0].positions.as_slice(), packed[1].positions.as_slice()),
        ([1, 2, 3].as_slice(), [1].as_slice())
    );
    assert_eq!(packed[1].input_ids, alone[1].input_ids);
    assert_eq!(packed[0].token_ids, alone[0].token_ids[..3 * 16]);
    assert_eq!(packed[1].log_probs, alone[1].log_probs[..16]);
    assert_eq!(packed[1].source.as_deref(), Some("packed.parquet:0:4"));
}

#[test]
fn other_layouts_of_distillkit_are_refused_by_name() {
    let expected: Value =
        serde_json::from_slice(&fs::read(golden("delta").join("expected.json")).unwrap()).unwrap();
    let mut config: DistillKitConfig = serde_json::from_value(expected["config"].clone()).unwrap();
    let files = [golden("delta").join("data_0.parquet")];
    let folder = tempfile::tempdir().unwrap();
    let target = ImportTarget { approximate_tail: true, ..target(1000) };
    let out = folder.path().join("out");
    config.k = 65;
    let source = ImportSource::DistillKit { files: &files, config: &config };
    refused(
        import(&out, &source, &target, &GO),
        &["row 0 place 0 bytepacked_indices: expected 82 bytes, found 80"],
    );
    config.k = 64;
    config.d = 600;
    let source = ImportSource::DistillKit { files: &files, config: &config };
    let small = ImportTarget { teacher: TeacherIdentity::unverified("x", "y", 600), ..target.clone() };
    refused(import(&out, &source, &small, &GO), &["expected an id in 0..600"]);
    config.term_dtype = softshard_labels::foreign::TermType::Float16;
    let source = ImportSource::DistillKit { files: &files, config: &config };
    refused(
        import(&out, &source, &target, &GO),
        &["config: term_dtype: expected float32 or float64, found float16"],
    );
    assert!(!out.exists());
}

/// Rows of a server that answered with `k` entries and, where it is not among them, the token itself.
fn completions(folder: &Path, lines: &[Value]) -> [PathBuf; 1] {
    let file = folder.join("responses.jsonl");
    fs::write(&file, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    [file]
}

fn read(files: &[PathBuf], top_k: u32, out: &Path) -> Result<Imported, Error> {
    let resolve = |text: &str, _: &[&str]| match text {
        " the" => Ok(11),
        " a" => Ok(12),
        "é" => Err("2 tokens, among them 5 and 6".to_owned()),
        _ => Err("no token".to_owned()),
    };
    import(out, &ImportSource::Completions { files, top_k, resolve: &resolve }, &target(97), &GO)
}

/// `prompt_logprobs` of vLLM: the token of position 2 is not among the two most probable.
fn vllm() -> Value {
    json!({"id": "cmpl-1", "object": "text_completion", "choices": [{
    "index": 0, "text": "", "prompt_token_ids": [3, 11, 12], "logprobs": null,
    "prompt_logprobs": [
        null,
        {"11": {"logprob": -0.5, "rank": 1, "decoded_token": " the"}, "7": {"logprob": -1.5, "rank": 2, "decoded_token": "x"}},
        {"12": {"logprob": -4.0, "rank": 9, "decoded_token": " a"}, "8": {"logprob": -0.25, "rank": 1, "decoded_token": "y"},
         "7": {"logprob": -2.5, "rank": 2, "decoded_token": "x"}}
    ]}]})
}

#[test]
fn responses_of_servers_become_labels() {
    let chat = json!({"custom_id": "question-7", "prompt_token_ids": [4, 5], "response": {"body": {"choices": [{
    "message": {"role": "assistant", "content": " the"},
    "logprobs": {"content": [
        {"token": " the", "logprob": -0.5, "bytes": [32], "top_logprobs": [
            {"token": "token_id:7", "logprob": -1.5, "bytes": null}, {"token": " the", "logprob": -0.5, "bytes": [32]}]}
    ]}}]}}});
    let echoed = json!({"choices": [{"text": "", "logprobs": {
        "tokens": ["token_id:3", "token_id:11", "token_id:12"], "text_offset": [0, 1, 2],
        "token_logprobs": [null, -0.5, -4.0],
        "top_logprobs": [null, {"token_id:11": -0.5, "token_id:7": -1.5}, {"token_id:8": -0.25, "token_id:7": -2.5, "token_id:12": -4.0}]
    }}]});
    let folder = tempfile::tempdir().unwrap();
    let files = completions(folder.path(), &[vllm(), chat, echoed]);
    let out = folder.path().join("out");
    let done = read(&files, 2, &out).unwrap();
    let omitted = &done.manifest.plan.omit;
    assert_eq!(omitted, &[OptionalColumn::LogSumExp, OptionalColumn::Entropy]);
    assert_eq!(done.manifest.plan.teacher.weights_blake3, "unverified: some/teacher");
    let rows: Result<Vec<_>, _> = LabelDataset::open(&out).unwrap().iter().collect();
    let rows = rows.unwrap();
    let [vllm, chat, echoed] = rows.as_slice() else { panic!("{rows:?}") };
    assert_eq!(
        (vllm.input_ids.as_slice(), vllm.token_ids.as_slice()),
        ([3, 11, 12].as_slice(), [11, 7, 8, 7].as_slice())
    );
    assert_eq!(vllm.gold_log_prob, [-0.5, -4.0]);
    let tail = (1.0 - (-0.5f64).exp() - (-1.5f64).exp()).ln();
    assert!((f64::from(vllm.tail_log_mass[0]) - tail).abs() < 1e-3);
    assert_eq!(
        (chat.input_ids.as_slice(), chat.positions.as_slice()),
        ([4, 5, 11].as_slice(), [2].as_slice())
    );
    assert_eq!(chat.token_ids, [11, 7]);
    assert_eq!(chat.source.as_deref(), Some("question-7"));
    assert_eq!(vllm.source.as_deref(), Some("responses.jsonl:1"));
    assert_eq!(
        (&echoed.input_ids, &echoed.token_ids, &echoed.log_probs),
        (&vllm.input_ids, &vllm.token_ids, &vllm.log_probs)
    );
}

#[test]
fn responses_that_say_too_little_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let try_with = |change: &dyn Fn(&mut Value), parts: &[&str]| {
        let mut response = vllm();
        change(&mut response);
        refused(read(&completions(folder.path(), &[vllm(), response]), 2, &out), parts);
    };
    let choice = |response: &mut Value| response["choices"][0].as_object_mut().unwrap().clone();
    try_with(
        &|response| {
            response["choices"][0]["prompt_token_ids"] = json!([11, 12, 3]);
        },
        &[
            "responses.jsonl` line 2 position 1 entries: expected token 12 of the sequence among them",
            "are these its ids?",
        ],
    );
    try_with(
        &|response| {
            response["choices"][0].as_object_mut().unwrap().remove("prompt_token_ids");
        },
        &["line 2 prompt_token_ids: expected the ids of the prompt, found none", "return_token_ids"],
    );
    try_with(
        &|response| {
            response["choices"][0]["prompt_logprobs"][1]["7"]["logprob"] = json!(-9999.0);
        },
        &["position 1 logprob: expected what the teacher said, found -9999, a placeholder"],
    );
    try_with(
        &|response| {
            response["choices"][0]["prompt_logprobs"][1].as_object_mut().unwrap().remove("7");
        },
        &["position 1 entries: expected the 2 most probable tokens, found 1 of them"],
    );
    try_with(
        &|response| {
            response["choices"][0]["prompt_logprobs"][1]["7"]["logprob"] = json!(-0.6);
        },
        &["line 2 position 1 log_probs and tail_log_mass: expected a mass of 1 in all, found 1.1553"],
    );
    let text = |token: &str| {
        let token = token.to_owned();
        move |response: &mut Value| {
            let mut one = choice(response);
            one.remove("prompt_logprobs");
            one.insert(
                "logprobs".to_owned(),
                json!({"content": [{"token": token.clone(), "logprob": -0.5, "top_logprobs": []}]}),
            );
            response["choices"][0] = Value::Object(one);
        }
    };
    try_with(
        &text("é"),
        &[
            "line 2 logprobs.content[0] token \"é\": expected the text of one token, found 2 tokens, among them 5 and 6",
            "return_tokens_as_token_ids",
        ],
    );
    try_with(&text("?"), &["token \"?\": expected the text of one token, found no token"]);
    try_with(
        &|response| *response = json!({"error": {"message": "overloaded"}}),
        &["line 2 choices: expected a list"],
    );
    assert!(!out.exists());
}

/// What `tests/peers/make_foreign.py` wrote.
fn foreign(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/foreign").join(name)
}

fn mapping(case: &Value) -> ColumnMap {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let pairs = case["map"].as_object().unwrap().iter().map(|(key, column)| (key.clone(), text(column)));
    let rule = if case["rule"] == "next" { PositionRule::Next } else { PositionRule::This };
    ColumnMap::new(pairs, rule, case["normalised"] == true).unwrap()
}

#[test]
fn columns_of_others_are_read_in_every_layout() {
    let expected: Value = serde_json::from_slice(&fs::read(foreign("expected.json")).unwrap()).unwrap();
    for case in expected["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let (files, map) = ([foreign(&format!("{name}.parquet"))], mapping(case));
        let folder = tempfile::tempdir().unwrap();
        let target = ImportTarget { approximate_tail: case["approximate"] == true, ..target(50) };
        let source = ImportSource::Parquet { files: &files, columns: &map };
        let done =
            import(folder.path(), &source, &target, &GO).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(done.manifest.plan.selection, Selection::TopK { k: 5 });
        let tolerance = if case["approximate"] == true { 2e-2 } else { 1e-5 };
        let rows: Result<Vec<_>, _> = LabelDataset::open(folder.path()).unwrap().iter().collect();
        for (labels, row) in rows.unwrap().iter().zip(expected["rows"].as_array().unwrap()) {
            assert_eq!(json!(labels.input_ids), row["tokens"], "{name}");
            let length = labels.input_ids.len();
            let first = if case["map"].get("loss_mask").is_some() { length / 2 } else { 1 };
            assert_eq!(labels.positions.len(), length - first, "{name}");
            for (index, entries) in labels.entries().enumerate() {
                let place = first + index - 1;
                assert_eq!(json!(entries.position), json!(first + index), "{name}");
                assert_eq!(entries.token_ids.len(), 5);
                let ids: Vec<i32> = serde_json::from_value(row["ids"][place].clone()).unwrap();
                for (id, log_prob) in entries.token_ids.iter().zip(entries.log_probs) {
                    let entry = ids.iter().position(|expected| expected == id).unwrap();
                    let expected = row["values"][place][entry].as_f64().unwrap();
                    assert!(
                        (f64::from(*log_prob) - expected).abs() < tolerance,
                        "{name}: {log_prob}, {expected}"
                    );
                }
                for (column, key) in [
                    (&labels.tail_log_mass, "tail"),
                    (&labels.log_sum_exp, "lse"),
                    (&labels.entropy, "entropy"),
                    (&labels.gold_log_prob, "gold"),
                ] {
                    let Some(found) = column.get(index) else { continue };
                    let expected = row[key][place].as_f64().unwrap();
                    assert!(
                        (f64::from(*found) - expected).abs() < 2e-3 * expected.abs().max(1.0),
                        "{name} {key}"
                    );
                }
            }
        }
    }
}

#[test]
fn columns_that_do_not_fit_are_refused_by_row() {
    let folder = tempfile::tempdir().unwrap();
    let try_file = |name: &str, pairs: &[(&str, &str)], rule| {
        let (files, map) = ([foreign(name)], columns(pairs, rule));
        import(
            &folder.path().join("out"),
            &ImportSource::Parquet { files: &files, columns: &map },
            &target(50),
            &GO,
        )
    };
    let base = [("input_ids", "tokens"), ("token_ids", "ids"), ("log_probs", "values")];
    let next = PositionRule::Next;
    refused(
        try_file("bad-null.parquet", &base, next),
        &["bad-null.parquet` row 0 column `values` values: expected a number everywhere, found null"],
    );
    refused(
        try_file("bad-few.parquet", &base, next),
        &["bad-few.parquet` row 0 log_probs: expected as many values as ids: 5, found 4"],
    );
    refused(
        try_file("next-short.parquet", &base, PositionRule::This),
        &["row 0 token_ids: expected entries at 2 places, as there are 2 tokens, found 1"],
    );
    refused(
        try_file("half.parquet", &base, next),
        &["tail_log_mass: expected exact", "rounded", "--approximate-tail"],
    );
    // Differences to the log-sum-exp do not look rounded; the logits do.
    let logits = [base[0], base[1], ("logits", "values"), ("log_sum_exp", "lse")];
    refused(
        try_file("bad-rounded.parquet", &logits, next),
        &["tail_log_mass: expected exact", "rounded", "--approximate-tail"],
    );
    refused(
        try_file("next-flat-masked.parquet", &base, next),
        &[
            "row 0 token_ids: expected entries that 2 or 1 places share evenly, not both, found 10",
            "map `counts`",
        ],
    );
    refused(
        try_file("padded.parquet", &[base[0], base[1], base[2], ("counts", "tokens")], next),
        &["row 0 counts: expected 1 of them, as token_ids has lists, found 2"],
    );
    refused(try_file("padded.parquet", &base, next), &["padded.parquet` row 0"]);
    refused(
        try_file("normalised.parquet", &base, next),
        &["expected log-probabilities of the full vocabulary", "--normalised"],
    );
    let other = [base[0], base[1], ("log_probs", "probabilities")];
    refused(
        try_file("this.parquet", &other, next),
        &["this.parquet`: expected column `probabilities`, found only tokens, ids, values, lse"],
    );
    let swapped = [base[0], ("token_ids", "values"), ("log_probs", "ids")];
    refused(
        try_file("next-short.parquet", &swapped, next),
        &["row 0 column `ids` type: expected floating-point numbers"],
    );
    for (pairs, said) in [
        (&base[..2], "expected a column for `log_probs`, or one for `logits`, not both, found none"),
        (
            &[base[0], base[1], ("logits", "values")],
            "expected a column for `log_sum_exp`, as there are logits",
        ),
        (&[base[0], ("top", "ids")], "expected one of input_ids, token_ids"),
    ] {
        let pairs = pairs.iter().map(|(key, column)| ((*key).to_owned(), (*column).to_owned()));
        let error = ColumnMap::new(pairs, next, false).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    assert!(!folder.path().join("out").exists());
}

#[test]
fn damaged_files_of_others_end_in_an_error_or_in_labels_that_pass() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = fs::read(foreign("this.parquet")).unwrap();
    let file = [folder.path().join("damaged.parquet")];
    let mut random = Random(11);
    let map = columns(
        &[("input_ids", "tokens"), ("token_ids", "ids"), ("log_probs", "values")],
        PositionRule::This,
    );
    let mut refusals = 0;
    for flip in 0..60 {
        let mut damaged = bytes.clone();
        damaged[random.below(bytes.len())] ^= 1 << random.below(8);
        if flip % 10 == 0 {
            damaged.truncate(random.below(bytes.len()));
        }
        fs::write(&file[0], damaged).unwrap();
        let out = folder.path().join(flip.to_string());
        match import(&out, &ImportSource::Parquet { files: &file, columns: &map }, &target(50), &GO) {
            Ok(_) => drop(LabelDataset::open(&out).unwrap()),
            Err(error) => {
                assert!(error.is_bad_data() && error.to_string().contains("damaged.parquet"), "{error}");
                assert!(!out.exists());
                refusals += 1;
            }
        }
    }
    assert!(refusals > 6, "{refusals}");
}

#[test]
fn a_wrong_position_rule_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let hf = folder.path().join("hf");
    let out = folder.path().join("out");
    export_hf(&liked(folder.path()), &hf, &GO).unwrap();
    let files = [hf.join("data/train-00000-of-00001.parquet")];
    let mut pairs = vec![
        ("input_ids", "input_ids"),
        ("token_ids", "teacher_token_ids"),
        ("log_probs", "teacher_log_probs"),
    ];
    let map = columns(&pairs, PositionRule::Next);
    let source = ImportSource::Parquet { files: &files, columns: &map };
    let hint = "entries at t seem to describe token t: --position-rule this";
    refused(
        import(&out, &source, &target(97), &GO),
        &["token_ids: expected entries that hold the token they describe", hint],
    );
    pairs.push(("labels", "labels"));
    let map = columns(&pairs, PositionRule::Next);
    let source = ImportSource::Parquet { files: &files, columns: &map };
    refused(
        import(&out, &source, &target(97), &GO),
        &["token_ids: expected entries, as the loss counts there, found none"],
    );
    let map = columns(&pairs, PositionRule::This);
    let source = ImportSource::Parquet { files: &files, columns: &map };
    import(&out, &source, &target(97), &GO).unwrap();
}

/// A dataset whose tokens are those that the teacher likes most.
fn liked(folder: &Path) -> LabelDataset {
    let plan = LabelPlan {
        omit: vec![OptionalColumn::LogSumExp, OptionalColumn::Entropy, OptionalColumn::GoldLogProb],
        mantissa_bits: 23,
        position_mantissa_bits: 23,
        ..plan(LabelPlan::ranges(40, 40), TOP_4)
    };
    let dir = folder.join("liked");
    let writer = LabelWriter::create_or_resume(&dir, plan.clone()).unwrap();
    let mut shard = writer.shard(0).unwrap();
    for mut labels in crate::common::shard_labels(&plan, 0) {
        let first: Vec<i32> = labels.entries().map(|entries| entries.token_ids[0]).collect();
        for (position, id) in labels.positions.iter().zip(first) {
            labels.input_ids[usize::try_from(*position).unwrap()] = id;
        }
        shard.push(labels).unwrap();
    }
    shard.commit().unwrap();
    writer.finish().unwrap();
    LabelDataset::open(&dir).unwrap()
}
