//! Both stages end to end, in a small world.

use std::fs;

use softshard_e2e::World;

#[test]
fn a_student_learns_from_labels_after_its_teacher_is_gone() {
    let world = World::labelled();
    fs::remove_dir_all(world.path("run/teacher")).expect("the teacher is deleted");
    fs::remove_dir_all(world.path("run/sequences/train")).expect("the sequences are deleted");
    let said = world.run("train-student", &[]).succeeded();
    assert!(said.stdout.contains("adapter:"), "{}", said.stdout);

    let metrics = world.curve("student");
    let loss = |line: &serde_json::Value| line["loss"].as_f64().expect("a number");
    let (first, last) = (metrics.first().expect("a step"), metrics.last().expect("a step"));
    assert!(loss(last) < loss(first), "the loss falls: {} to {}", loss(first), loss(last));
    assert!(first["divergence"].as_f64().expect("a number") > 0.0);

    let said = world.run("evaluate", &[]).succeeded();
    assert!(said.stdout.contains("KL to teacher"), "{}", said.stdout);
    let table = world.run("report", &[]).succeeded().stdout;
    assert!(
        table.contains("student") && table.lines().count() == 6 && table.starts_with("test: 12 sequences ("),
        "{table}"
    );
    assert!(table.contains("\nstudent: student `student` (adapter "), "{table}");
}

#[test]
fn alpha_zero_is_supervised_training_on_the_same_tokens() {
    let world = World::labelled();
    let curve = |output: &str| -> Vec<(u64, String)> {
        let of = |line: &serde_json::Value| {
            (line["step"].as_u64().expect("a step"), line["cross_entropy"].to_string())
        };
        world.curve(output).iter().map(of).collect()
    };
    world.run("train-student", &["student.loss.alpha=0", "output.student=zero"]).succeeded();
    world.run("train-student", &["student.objective=supervised", "output.student=supervised"]).succeeded();
    assert_eq!(curve("zero"), curve("supervised"));
}

#[test]
fn losses_are_chosen_in_the_recipe() {
    let world = World::labelled();
    let train = |name: &str, overrides: &[&str]| {
        let output = format!("output.student={name}");
        world.run("train-student", &[&[output.as_str(), "student.max_steps=4"], overrides].concat())
    };
    let jsd = r#"student.loss.divergence={ kind = "jsd", beta = 0.5 }"#;
    let by_entropy = r#"student.loss.alpha={ kind = "entropy", scale = 0.5 }"#;
    for (name, overrides) in [
        ("reverse", &["student.loss.divergence=reverse_kl", "student.loss.tail=uniform"][..]),
        ("jsd", &[jsd, "student.loss.temperature=2.0", by_entropy]),
        ("tvd", &["student.loss.divergence=tvd", "student.loss.tail=drop", "student.loss.normalise=true"]),
    ] {
        train(name, overrides).succeeded();
        let divergence = |line: &serde_json::Value| line["divergence"].as_f64().expect("a number");
        let curve = world.curve(name);
        assert!(curve.iter().all(|line| divergence(line) > 0.0), "{name}: {curve:?}");
    }
    train("bad", &["student.loss.divergence=reverse_kl", "student.loss.tail=drop"]).failed(
        2,
        &["`student.loss.tail`: expected \"bucket\", \"renormalise\" or \"uniform\" for the reverse KL"],
    );
    train("bad", &["student.loss.divergence=jsd"]).failed(2, &["missing field `beta`"]);
}

#[test]
fn top_p_keeps_what_it_needs_and_no_more() {
    let world = World::with_teacher();
    let selection = r#"labels.selection={ kind = "top_p", p = 0.9, k = 64 }"#;
    let said = world.run("teacher-labels", &[selection]).succeeded();
    assert!(said.stdout.contains("bytes per labelled token"), "{}", said.stdout);
    world.run("finetune", &["finetune.max_steps=1", "output.teacher=../start"]).succeeded();
    world.run("train-student", &[selection, "student.max_steps=2"]).succeeded();
}

/// The divergence from draws estimates the one from all of the vocabulary, before the first step changes anything.
#[test]
fn drawn_labels_teach_as_full_ones_do() {
    let world = World::with_teacher();
    world.run("finetune", &["finetune.max_steps=1", "output.teacher=../start"]).succeeded();
    let first_kl = |name: &str, selection: &str| -> f64 {
        let (labels, student) = (format!("output.labels={name}"), format!("output.student={name}-student"));
        let selection = format!("labels.selection={selection}");
        world.run("teacher-labels", &[&labels, &selection]).succeeded();
        world.run("train-student", &[&labels, &selection, &student, "student.max_steps=3"]).succeeded();
        let line = world.curve(&format!("{name}-student")).remove(0);
        line["divergence"].as_f64().expect("a number")
    };
    let full = first_kl("full", r#"{ kind = "top_k", k = 400 }"#);
    let [sampled, hybrid] =
        [r#"{ kind = "sampled", draws = 50 }"#, r#"{ kind = "top_k_sampled", k = 12, draws = 12 }"#];
    for (name, selection) in [("sampled", sampled), ("hybrid", hybrid)] {
        let found = first_kl(name, selection);
        assert!((found / full - 1.0).abs() < 0.05, "{name}: expected about {full}, found {found}");
    }
    // The recipe says another selection, which is refused by name unless it is taken.
    let accepting = |overrides: &[&str]| {
        world.run("train-student", overrides).failed(3, &["labels.selection.", "--accept labels.selection"]);
        world.run_accepting("train-student", overrides, &["labels.selection"])
    };
    accepting(&["output.labels=sampled", "student.loss.temperature=2.0", "output.student=t2"]).failed(
        3,
        &["`student.loss.temperature`", "expected 1, as the labels were drawn at it, found 2", "top_k"],
    );
    // Draws estimate the forward KL alone; of a hybrid the exact tokens serve the others.
    let reverse = ["student.loss.divergence=reverse_kl", "student.max_steps=2"];
    accepting(&[&reverse[..], &["output.labels=sampled", "output.student=draws"]].concat()).failed(
        3,
        &["`student.loss.divergence`: expected forward_kl for labels of the selection sampled, 50"],
    );
    accepting(&[&reverse[..], &["output.labels=hybrid", "output.student=exact"]].concat()).succeeded();
    let inspected = softshard_e2e::softshard(&[
        "labels",
        "inspect",
        world.path("run/sampled/train").to_str().expect("UTF-8"),
    ]);
    assert!(inspected.succeeded().stdout.contains('×'));
}

#[test]
fn a_temperature_with_its_partition_trains_and_one_without_is_refused() {
    let world = World::labelled();
    world.run("train-student", &["student.loss.temperature=2.0", "student.max_steps=2"]).succeeded();
    world
        .run("train-student", &["student.loss.temperature=3.0", "output.student=other"])
        .failed(2, &["`student.loss.temperature`", "found 3", "`labels.temperatures`"]);
    // The recipe asks for it, but the labels are older.
    let of_recipe =
        ["labels.temperatures=[2.0, 3.0]", "student.loss.temperature=3.0", "output.student=other"];
    world
        .run("train-student", &of_recipe)
        .failed(3, &["labels.temperatures: expected [2.0,3.0], found [2.0]", "label again"]);
    world
        .run_accepting("train-student", &of_recipe, &["labels.temperatures"])
        .failed(3, &["`student.loss.temperature`", "found 3", "`labels.temperatures`"]);
}

#[test]
fn help_reads_like_a_map() {
    let help = softshard_e2e::softshard(&["--help"]).succeeded().stdout;
    for part in [
        "prepare ─► sequences/",
        "teacher-labels ─► labels/",
        "train-student ─► adapter/",
        "Exit codes: 0 done",
    ] {
        assert!(help.contains(part), "{help}");
    }
}

#[test]
fn json_log_lines_are_json() {
    let world = World::new();
    let said =
        world.stage("prepare", &[]).args(["--log-format", "json"]).output().expect("the binary starts");
    let text = String::from_utf8(said.stderr).expect("UTF-8");
    assert!(!text.is_empty());
    for line in text.lines() {
        let event: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(event["level"].is_string(), "{line}");
    }
}
