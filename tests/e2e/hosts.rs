//! Hosts and people that are not friendly: disks and pipes that are full or read-only, processes that are hidden, names with
//! escape sequences in them. No command ends in a panic.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::Path,
    process::{Command, Stdio},
};

use softshard_e2e::{Background, Disk, Said, World, binary, command, run, skipped, softshard};
use softshard_labels::{LabelDataset, LabelWriter, OptionalColumn};

/// A test that needs root or a tool: required where all tests are.
fn skip(why: &str) {
    assert!(std::env::var_os("SOFTSHARD_ALL_TESTS").is_none(), "this test must run: {why}");
    skipped(why);
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of ASCII")
}

/// A command with its standard output on a device that is always full.
fn full(command: &mut Command) -> Said {
    let device = fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux has /dev/full");
    run(command.stdout(device))
}

/// Covers every kind of command: what only prints, what writes files too, help and data.
#[test]
fn a_full_standard_output_is_an_error_and_the_work_is_kept() {
    let world = World::small_labelled();
    let labels = world.path("run/labels/train");
    let (labels, model) = (text(&labels), world.path("run/teacher/model"));
    let expected = ["standard output: No space left on device"];
    let prints: [&[&str]; 9] = [
        &["--help"],
        &["--version"],
        &["schema", "recipe"],
        &["model", "inspect", text(&model)],
        &["labels", "stats", labels],
        &["labels", "stats", labels, "--json"],
        &["labels", "inspect", labels],
        &["labels", "verify", labels],
        &["labels", "export", labels, "--to", "jsonl", "--output", "-"],
    ];
    for arguments in prints {
        full(&mut command(arguments)).failed(1, &expected);
    }
    let demo = world.path("demo");
    full(&mut command(&["demo-data", text(&demo), "--rows", "9", "--vocab-size", "300"]))
        .failed(1, &expected);
    assert!(demo.join("instructions.jsonl").exists());
    let stages = [
        ("prepare", "output.sequences=sequences-2", "sequences-2/train/manifest.json"),
        ("finetune", "output.teacher=teacher-2", "teacher-2/model/model.safetensors"),
        ("teacher-labels", "output.labels=labels-2", "labels-2/train/manifest.json"),
        ("train-student", "output.student=student-2", "student-2/adapter/adapter_model.safetensors"),
    ];
    for (stage, output, made) in stages {
        let more = ["standard output: No space left on device", "the files of this command are whole"];
        full(&mut world.stage(stage, &["finetune.max_steps=2", "student.epochs=1", output])).failed(1, &more);
        assert!(world.path("run").join(made).exists(), "{stage}: {made}");
    }
}

/// Covers a standard error that is full, closed, or has nobody behind it: no stage needs it.
#[test]
fn a_standard_error_that_takes_nothing_ends_no_stage() {
    let world = World::small();
    let device = || fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux has /dev/full");
    for format in ["text", "json"] {
        let mut stage = world.stage("teacher-labels", &[&format!("output.labels=of-{format}")]);
        run(stage.args(["--log-format", format]).stderr(device())).succeeded();
    }
    let closed = "exec \"$0\" \"$@\" 1>&- 2>&-";
    let stage = world.stage("teacher-labels", &["output.labels=closed"]);
    run(Command::new("bash").args(["-c", closed]).arg(stage.get_program()).args(stage.get_args()))
        .succeeded();
    assert!(world.path("run/closed/train/manifest.json").exists());
    // Errors have their codes without a word.
    let mut missing = command(&["prepare", "/nowhere/recipe.toml"]);
    assert_eq!(run(missing.stderr(device())).code, 2);
}

const HOSTILE: &str = "\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}31m\u{202e}|\nrow <b>";

/// What a terminal would obey, but for new lines and tabs.
fn steers(text: &str) -> bool {
    text.chars().any(|letter| (letter.is_control() && !matches!(letter, '\n' | '\t')) || letter == '\u{202e}')
}

#[track_caller]
fn assert_harmless(said: &Said) {
    assert!(!steers(&said.stdout), "{:?}", said.stdout);
    assert!(!steers(&said.stderr), "{:?}", said.stderr);
}

/// Covers names, sources, tokens and templates of strangers in tables, errors, logs, JSON and the card.
#[test]
fn strangers_text_does_not_steer_the_terminal_or_the_card() {
    let world = World::small_labelled();
    let own = LabelDataset::open(world.path("run/labels/train")).expect("labels");
    let mut plan = own.manifest().plan.clone();
    plan.template = HOSTILE.to_owned();
    // It was rounded otherwise than the entries, which a writer of exact ones compares it with.
    plan.omit = vec![OptionalColumn::GoldLogProb];
    let foreign = world.path("foreign");
    let writer = LabelWriter::create_or_resume(&foreign, plan).expect("a plan");
    let mut rows = own.iter();
    for shard in writer.missing().expect("a dataset") {
        let mut into = writer.shard(shard).expect("a shard");
        for labels in rows.by_ref().take(2) {
            let mut labels = labels.expect("a row");
            labels.source = Some(HOSTILE.to_owned());
            labels.gold_log_prob.clear();
            into.push(labels).expect("it is pushed");
        }
        into.commit().expect("a commit");
    }
    writer.finish().expect("a manifest");
    let card = fs::read_to_string(foreign.join("README.md")).expect("a card");
    assert!(!steers(&card), "{card:?}");
    let line = card.lines().find(|line| line.contains("prompt template")).expect("the template is said");
    assert!(line.contains("owned") && line.contains("row &lt;b&gt;"), "one cell: {line}");

    let (foreign, labels) = (text(&foreign).to_owned(), world.path("run/labels/train"));
    let page = world.path("page.html");
    let said = [
        softshard(&["labels", "inspect", &foreign, "--tokenizer", text(&world.path("data/tokenizer"))])
            .succeeded(),
        softshard(&["labels", "stats", &foreign, "--html", text(&page)]).succeeded(),
        softshard(&["labels", "verify", &foreign]).succeeded(),
        softshard(&["labels", "diff", text(&labels), &foreign]),
        world.run("train-student", &[&format!("student.mixture=[{{ labels = {foreign:?} }}]")]),
        softshard(&["labels", "inspect", HOSTILE]),
        softshard(&["--log-format", "json", "labels", "inspect", HOSTILE]),
        softshard(&[HOSTILE]),
    ];
    said.iter().for_each(assert_harmless);
    assert!(said[0].stdout.contains("owned"), "it is said, and seen: {}", said[0].stdout);
    assert!(!steers(&fs::read_to_string(page).expect("a page")));
    for said in &said[5..7] {
        assert!(said.code != 0 && said.stderr.contains("owned"), "{said:?}");
    }

    // A file's name and what stands in it.
    let bad = world.path("data").join("bad\u{1b}[2J.jsonl");
    fs::write(&bad, format!("{{\"instruction\": {HOSTILE:?}\n")).expect("a file");
    let said = world.run("prepare", &[&format!("data.instructions={}", text(&bad))]);
    assert_harmless(&said);
    said.failed(3, &["bad\\x1b[2J.jsonl"]);
}

/// Runs a stage that must not wait for anybody.
fn at_once(command: &Command) -> Said {
    run(Command::new("timeout").arg("60").arg(command.get_program()).args(command.get_args()))
}

/// Covers every small file that a dataset's reader or writer opens: a pipe would be waited for, a link lead elsewhere.
#[test]
fn pipes_and_links_in_a_dataset_are_refused_at_once() {
    let world = World::small_labelled();
    let train = world.path("run/labels/train");
    let files = ["manifest.json", "README.md", "_softshard/plan.json", "_softshard/commits/00000.json"];
    for file in files {
        let (path, away) = (train.join(file), world.path("away"));
        for (what, found) in [("pipe", "found a pipe"), ("link", "found a link")] {
            let manifest = fs::read(train.join("manifest.json")).expect("a manifest");
            fs::rename(&path, &away).expect("the file is moved");
            if what == "pipe" {
                assert!(Command::new("mkfifo").arg(&path).status().expect("mkfifo runs").success());
            } else {
                std::os::unix::fs::symlink(&away, &path).expect("a link");
            }
            if file != "manifest.json" {
                // Of a finished dataset most of them are not read.
                fs::remove_file(train.join("manifest.json")).expect("a manifest");
            }
            let name = Path::new(file).file_name().expect("a name").to_str().expect("ASCII");
            at_once(&world.stage("teacher-labels", &[])).failed(3, &[name, found]);
            fs::remove_file(&path).expect("it is removed");
            fs::rename(&away, &path).expect("the file is moved back");
            fs::write(train.join("manifest.json"), manifest).expect("the manifest is back");
        }
    }
    fs::remove_file(train.join("manifest.json")).expect("a manifest");
    assert!(Command::new("mkfifo").arg(train.join("manifest.json")).status().expect("mkfifo runs").success());
    at_once(&world.stage("train-student", &[])).failed(3, &["manifest.json", "found a pipe"]);
    at_once(&command(&["labels", "verify", text(&train)])).failed(3, &["1 problem"]);
}

/// Covers every file of a model folder, its tokenizer's among them, and of an adapter's.
#[test]
fn pipes_in_a_model_folder_are_refused_at_once() {
    let world = World::labelled();
    let tokenizer = "tokenizer.path=run/teacher/model";
    for folder in ["run/teacher/model", "run/student/adapter"] {
        let folder = world.path(folder);
        if !folder.exists() {
            world.run("train-student", &[]).succeeded();
        }
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_str().expect("ASCII").to_owned();
            if ["README.md", "provenance.json", "special_tokens_map.json"].contains(&name.as_str()) {
                continue;
            }
            let away = world.path("away");
            fs::rename(&path, &away).expect("the file is moved");
            assert!(Command::new("mkfifo").arg(&path).status().expect("mkfifo runs").success());
            let settings = ["teacher.adapter=run/student/adapter", "output.labels=again", tokenizer];
            at_once(&world.stage("teacher-labels", &settings)).failed(3, &[&name, "regular file"]);
            fs::remove_file(&path).expect("the pipe is removed");
            fs::rename(&away, &path).expect("the file is moved back");
        }
    }
}

/// Covers the stage that made them, those after it, and the end of many workers: nothing is written to finished labels.
#[test]
fn finished_labels_on_a_read_only_disk_are_read_by_all_stages() {
    let world = World::labelled();
    let (labels, aside) = (world.path("run/labels"), world.path("aside"));
    fs::rename(&labels, &aside).expect("the labels are moved");
    let Some(_disk) = Disk::mount(labels.clone(), "size=64m") else { return skip("no disk may be mounted") };
    let copied = Command::new("cp").arg("-a").arg(aside.join(".")).arg(&labels).status();
    assert!(copied.expect("cp runs").success());
    // As a kill between the manifest and the end leaves it.
    fs::write(labels.join("train/_softshard/tmp/left-over"), "").expect("a leftover");
    let locked = Command::new("mount").args(["-o", "remount,ro"]).arg(&labels).status();
    assert!(locked.expect("mount runs").success());
    let before = world.files("run/labels");
    let recipe = world.path("recipe.toml");
    for _ in 0..2 {
        world.run("teacher-labels", &[]).succeeded();
        softshard(&["labels", "finalize", text(&recipe)]).succeeded();
    }
    world.run("train-student", &["student.epochs=1"]).succeeded();
    world.run("evaluate", &[]).succeeded();
    run(world.stage("submit", &[]).args(["--engine", "slurm", "--dry-run"])).succeeded();
    world.run("teacher-labels", &["labels.mantissa_bits=9"]).failed(3, &["another plan"]);
    assert_eq!(world.files("run/labels"), before);
}

/// Covers `hidepid=2`: a process that another user may not see has its temporary files; one that is gone has none.
#[test]
fn a_process_that_proc_hides_is_alive() {
    let world = World::small();
    let isolated = "mount -t proc -o hidepid=2 proc /proc && \
                    exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$0\" \"$@\"";
    let as_nobody = |arguments: &[&OsStr]| {
        run(Command::new("unshare").args(["-m", "sh", "-c", isolated]).args(arguments))
    };
    let alive = Background::start(Command::new("sleep").arg("600"));
    let seen = format!("/proc/{}", alive.id());
    if as_nobody(&["true".as_ref()]).code != 0 {
        return skip("no /proc may be mounted as another user sees it");
    }
    assert_ne!(as_nobody(&["ls".as_ref(), seen.as_ref()]).code, 0, "the process is hidden");

    let mut gone = Command::new("true").spawn().expect("true runs");
    gone.wait().expect("it ends");
    let own = world.path("softshard");
    fs::copy(binary(), &own).expect("the binary is copied to where others may run it");
    // A worker that has begun and not finished.
    run(world.stage("teacher-labels", &[]).args(["--task", "0", "--of", "3"])).succeeded();
    let mut machine = blake3::Hasher::new();
    machine.update(&fs::read("/proc/sys/kernel/random/boot_id").expect("Linux has it"));
    let namespace = fs::read_link("/proc/self/ns/pid").expect("Linux has it");
    machine.update(namespace.as_os_str().as_encoded_bytes());
    let machine = &machine.finalize().to_hex()[..8];
    let temporary = |process: u32| {
        world.path("run/labels/train/_softshard/tmp").join(format!("{machine}-{process}-0123456789abcdef"))
    };
    for process in [alive.id(), gone.id()] {
        fs::write(temporary(process), "a live shard").expect("a temporary file");
    }
    assert!(
        Command::new("chmod").args(["-R", "a+rwX"]).arg(world.path("")).status().expect("chmod").success()
    );
    let recipe = world.path("recipe.toml");
    let rest = ["teacher-labels", text(&recipe), "--task", "1", "--of", "3"];
    let arguments: Vec<&OsStr> = [own.as_os_str()].into_iter().chain(rest.iter().map(OsStr::new)).collect();
    as_nobody(&arguments).succeeded();
    assert!(temporary(alive.id()).exists(), "a live process has its file");
    assert!(!temporary(gone.id()).exists(), "a dead one has none: its machine was known");
}

/// Covers a user who may start no more threads: fewer do the work, or an error says so.
#[test]
fn threads_that_may_not_be_started_are_no_panic() {
    let world = World::small();
    let own = world.path("softshard");
    fs::copy(binary(), &own).expect("the binary is copied to where others may run it");
    assert!(
        Command::new("chmod").args(["-R", "a+rwX"]).arg(world.path("")).status().expect("chmod").success()
    );
    let limited = |threads: u32, arguments: &[&str]| {
        // One that waits for a thread that is not there ends with 137. A user that nobody else is.
        let mut command = Command::new("timeout");
        command.args(["-k", "10", "60", "setpriv", "--reuid", "64123", "--regid", "64123", "--clear-groups"]);
        run(command.arg("prlimit").arg(format!("--nproc={threads}")).arg(&own).args(arguments))
    };
    if limited(1_000, &["--version"]).code != 0 {
        return skip("no process may be started as another user");
    }
    let recipe = world.path("recipe.toml");
    for threads in 1..8 {
        for stage in ["prepare", "teacher-labels"] {
            let said = limited(threads, &[stage, text(&recipe)]);
            assert!(matches!(said.code, 0 | 1), "{threads}: {said:?}");
            assert!(said.code == 0 || said.stderr.contains("error: "), "{threads}: {said:?}");
            assert!(!said.stderr.contains("panicked at"), "{threads}: {said:?}");
        }
    }
    limited(100, &["teacher-labels", text(&recipe)]).succeeded();
}

/// Covers paths with spaces and quotes, and a dry run that makes no labels.
#[test]
fn commands_to_type_are_quoted_and_a_dry_run_makes_no_labels() {
    let world = World::small();
    let strange = world.path("it's a \"run\" $HOME");
    let output = format!("output.dir={strange:?}");
    let sequences = format!("output.sequences={:?}", text(&world.path("run/sequences")));
    let given = |engine: &'static str, more: &[&str]| {
        let mut submit = world.stage("submit", &[&output, &sequences]);
        run(submit.args(["--engine", engine, "--dry-run"]).args(more).env("PATH", "/usr/bin:/bin"))
    };
    let claim = "runs:/";
    let said = given("kubernetes", &["--image", "x", "--claim", claim, "--then-student"]).succeeded();
    let applied: Vec<&str> = said.stdout.lines().filter(|line| line.contains("kubectl apply")).collect();
    assert_eq!(applied.len(), 3, "{said:?}");
    for line in applied {
        // What a shell makes of it names a file that is there.
        let script = format!(
            "kubectl() {{ for word; do last=$word; done; }}\n{line}\ntest -f \"${{last#--filename=}}\""
        );
        assert_eq!(run(Command::new("bash").args(["-c", &script])).code, 0, "{line}");
    }
    let refused =
        given("kubernetes", &["--image", "x", "--claim", "runs:/other"]).failed(2, &["`output.labels`"]);
    assert!(refused.stderr.contains("'NAME:/"), "{refused:?}");
    for name in ["labels", "labels/train"] {
        assert!(!strange.join(name).exists(), "a dry run makes no {name}");
    }
    run(world.stage("resume", &[&sequences]).args(["--engine", "slurm", "--dry-run"]))
        .failed(1, &["were begun"]);
    assert!(!world.path("run/labels").exists(), "nor does one that finds nothing");
}

/// Covers a folder whose name is no text: said before any work.
#[test]
fn a_path_that_is_no_text_is_refused_before_work() {
    let world = World::new();
    let folder = world.path("").join(OsStr::from_bytes(b"caf\xe9"));
    fs::create_dir(&folder).expect("a folder");
    for name in ["data", "shape"] {
        std::os::unix::fs::symlink(world.path(name), folder.join(name)).expect("a link");
    }
    fs::copy(world.path("recipe.toml"), folder.join("recipe.toml")).expect("a recipe");
    for stage in ["prepare", "finetune", "teacher-labels", "train-student", "evaluate", "report"] {
        run(command(&[stage]).arg(folder.join("recipe.toml"))).failed(2, &["UTF-8", r"caf\xe9", "hint:"]);
    }
    assert!(!folder.join("run").exists());
}

/// Covers a split that leaves nothing: said by the stage that makes it.
#[test]
fn a_split_that_holds_all_rows_out_is_refused() {
    let world = World::new();
    for split in ["{ valid_rows = 1000, seed = 1 }", "{ valid_fraction = 0.9999999, seed = 1 }"] {
        world
            .run("prepare", &[&format!("data.split={split}")])
            .failed(3, &["all of them held out", "`data.split`"]);
        for split in ["train", "valid", "test"] {
            let manifest = world.path("run/sequences").join(split).join("manifest.json");
            assert!(!manifest.exists(), "no dataset is written");
        }
    }
}

/// Tokenizer files of a model cache are read-only: so were their copies, which a second run could not write.
#[test]
fn read_only_tokenizer_files_are_copied_again() {
    let world = World::prepared();
    let mode = |path: &Path| fs::metadata(path).expect("a file").permissions().mode();
    for entry in fs::read_dir(world.path("data/tokenizer")).expect("a tokenizer").flatten() {
        fs::set_permissions(entry.path(), PermissionsExt::from_mode(0o444)).expect("a mode");
    }
    for _ in 0..2 {
        world.run("finetune", &["finetune.max_steps=1"]).succeeded();
        let copy = world.path("run/teacher/model/tokenizer.json");
        assert_ne!(mode(&copy) & 0o200, 0, "its owner may write it");
        fs::set_permissions(&copy, PermissionsExt::from_mode(0o444)).expect("as an earlier version left it");
    }
}

/// What a host may lack or forbid: the code is that of an end or of an error, never of a panic or a signal.
#[test]
fn hosts_that_lack_things_cause_errors_and_no_panics() {
    let world = World::small();
    let stage = |output: &str| world.stage("teacher-labels", &[&format!("output.labels={output}")]);
    let through = |script: &str, output: &str| {
        let stage = stage(output);
        run(Command::new("bash").args(["-c", script]).arg(stage.get_program()).args(stage.get_args()))
    };
    let scripts = [
        ("no-tmp", "TMPDIR=/nowhere exec \"$0\" \"$@\"", &[0][..]),
        ("no-home", "unset HOME; exec \"$0\" \"$@\"", &[0]),
        ("bare", "exec env -i \"$0\" \"$@\"", &[0]),
        (
            "no-folder",
            "mkdir -p /tmp/gone.$$ && cd /tmp/gone.$$ && rmdir /tmp/gone.$$ && exec \"$0\" \"$@\"",
            &[0],
        ),
        ("few-files", "ulimit -n 24; exec \"$0\" \"$@\"", &[0, 1]),
        ("very-few-files", "ulimit -n 5; exec \"$0\" \"$@\"", &[0, 1]),
        ("umask", "umask 0777; exec \"$0\" \"$@\"", &[0, 1]),
        ("few-processes", "ulimit -u 1; exec \"$0\" \"$@\"", &[0, 1]),
        ("small-files", "ulimit -f 1; exec \"$0\" \"$@\"", &[1]),
        ("no-stdin", "exec \"$0\" \"$@\" <&-", &[0]),
    ];
    for (name, script, codes) in scripts {
        let said = through(script, name);
        assert!(codes.contains(&said.code), "{name}: {said:?}");
        assert!(said.code == 0 || said.stderr.contains("error: "), "{name}: {said:?}");
        assert!(!said.stderr.contains("panicked at"), "{name}: {said:?}");
    }
    for (name, hidden) in [("no-proc", "/proc"), ("no-shm", "/dev/shm"), ("no-sys", "/sys")] {
        let stage = stage(name);
        let script = format!("mount -t tmpfs none {hidden} && exec \"$0\" \"$@\"");
        let mut unshare = Command::new("unshare");
        unshare.args(["-m", "sh", "-c", &script]).arg(stage.get_program()).args(stage.get_args());
        let said = run(unshare.stdout(Stdio::piped()));
        if said.stderr.contains("unshare") || said.stderr.contains("mount:") {
            return skip("nothing may be hidden from a process");
        }
        said.succeeded();
    }
}
