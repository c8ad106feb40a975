//! Helpers of the end-to-end tests: the real binary, in a small world of its own.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::OnceLock,
};

pub mod strace;

pub use strace::may_trace;

/// Root of the checkout.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent").to_owned()
}

/// Says aloud that a test was skipped, past the capture of a test's output.
pub fn skipped(why: &str) {
    writeln!(io::stderr(), "SKIPPED: {why}").expect("stderr is open");
}

/// Real data, which lies beside the checkout or where `SOFTSHARD_DATA` says; `None`, said aloud, where there is none.
pub fn real_data() -> Option<PathBuf> {
    let folder =
        std::env::var_os("SOFTSHARD_DATA").map_or_else(|| root().join("../shared/data"), PathBuf::from);
    if folder.exists() {
        return Some(fs::canonicalize(folder).expect("the folder is there"));
    }
    skipped(&format!("no real data at {}; SOFTSHARD_DATA names its folder", folder.display()));
    None
}

/// The binary, built from the present sources.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| build(&["--bins"]).join("softshard"))
}

/// Builds `targets` from the present sources, as the test itself was built; the folder of the profile.
pub fn build(targets: &[&str]) -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let test = std::env::current_exe().expect("a test has a path");
    let folder = test.ancestors().nth(2).expect("tests lie in <target>/<profile>/deps");
    // The whole workspace, so that features and with them the dependencies are those of the tests.
    let mut command = Command::new(cargo);
    command.args(["build", "--workspace", "--quiet"]).args(targets);
    if cfg!(feature = "wgpu") {
        command.args([
            "--config",
            ".cargo/quickly.toml",
            "--features",
            "softshard-cli/wgpu,softshard-e2e/wgpu",
        ]);
    }
    assert!(command.current_dir(root()).status().expect("cargo runs").success(), "{targets:?}: the build");
    folder.to_owned()
}

/// A command that runs meanwhile; dropped it is killed, also where it stands still.
pub struct Background(Option<Child>);

impl Background {
    /// Starts it.
    pub fn start(command: &mut Command) -> Self {
        Self(Some(command.spawn().expect("the command starts")))
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.0.as_ref().expect("it has not ended").id()
    }

    /// Waits for its end.
    pub fn end(mut self) -> Said {
        let child = self.0.take().expect("it has not ended");
        Said::new(&child.wait_with_output().expect("its end is waited for"))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let ended = child.kill().and_then(|()| child.wait());
            ended.map(drop).unwrap_or_else(|error| eprintln!("{}: {error}", child.id()));
        }
    }
}

/// What a run of the binary said.
#[derive(Debug)]
pub struct Said {
    /// Exit code; -1 after a signal.
    pub code: i32,
    /// Results.
    pub stdout: String,
    /// Log, progress and errors.
    pub stderr: String,
}

impl Said {
    /// What an ended process said.
    pub fn new(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Said {
            code: output.status.code().unwrap_or(-1),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    /// Fails the test unless the run ended well.
    #[track_caller]
    pub fn succeeded(self) -> Self {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }

    /// Fails the test unless the run ended with `code` and all of `parts` in its error.
    #[track_caller]
    pub fn failed(self, code: i32, parts: &[&str]) -> Self {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        for part in parts {
            assert!(self.stderr.contains(part), "expected {part:?} in:\n{}", self.stderr);
        }
        self
    }
}

/// Runs the binary.
pub fn softshard(arguments: &[&str]) -> Said {
    run(&mut command(arguments))
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Said {
    Said::new(&command.output().expect("the command starts"))
}

/// The binary with its arguments, its output piped.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Names and contents of files.
pub type Files = Vec<(PathBuf, Vec<u8>)>;

/// A folder with demo data, two model shapes and a recipe.
pub struct World {
    folder: tempfile::TempDir,
}

/// The shape of a model that trains in no time.
const TINY_LLAMA: &str = r#"{
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 400, "hidden_size": 32,
  "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
  "hidden_act": "silu", "max_position_embeddings": 256, "initializer_range": 0.05, "rms_norm_eps": 1e-5,
  "rope_theta": 10000.0, "tie_word_embeddings": true
}"#;

const RECIPE: &str = r#"
[data]
instructions = "data/instructions.jsonl"
template = "none"
max_prompt_tokens = 200
max_tokens = 250
split = { valid_rows = 12, test_rows = 12, seed = 1 }

[tokenizer]
path = "data/tokenizer"

[finetune]
model = "shape"
init = "random"
max_steps = 12
learning_rate = 1e-2
max_tokens_per_batch = 1024

[teacher]
model = "run/teacher/model"

[labels]
selection = { kind = "top_k", k = 16 }
temperatures = [2.0]
sequences_per_shard = 10

[student]
model = "start/model"
epochs = 2
learning_rate = 1e-2
max_tokens_per_batch = 1024
accumulate_batches = 2
checkpoint_every_steps = 3
lora = { r = 4, alpha = 8.0, dropout = 0.1, target_modules = ["q_proj", "v_proj"] }

[student.loss]
alpha = 0.5

[evaluate]
max_answers = 4
max_new_tokens = 8

[output]
dir = "run"
"#;

impl World {
    /// Demo data and the recipe.
    pub fn new() -> Self {
        let world = World { folder: tempfile::tempdir().expect("a temporary folder") };
        let data = world.path("data");
        let data = data.to_str().expect("a path of ASCII");
        softshard(&["demo-data", data, "--rows", "84", "--vocab-size", "400"]).succeeded();
        fs::create_dir(world.path("shape")).expect("a folder is made");
        fs::write(world.path("shape/config.json"), TINY_LLAMA).expect("the shape is written");
        fs::write(world.path("recipe.toml"), RECIPE).expect("the recipe is written");
        world
    }

    /// Prepared sequences.
    pub fn prepared() -> Self {
        let world = Self::new();
        world.run("prepare", &[]).succeeded();
        world
    }

    /// Prepared, with a teacher that knows a little.
    pub fn with_teacher() -> Self {
        let world = Self::prepared();
        world.run("finetune", &[]).succeeded();
        world
    }

    /// Labelled, with a model for the student to start from.
    pub fn labelled() -> Self {
        let world = Self::with_teacher();
        world.run("teacher-labels", &[]).succeeded();
        world
            .run("finetune", &["finetune.max_steps=3", "finetune.seed=2", "output.teacher=../start"])
            .succeeded();
        world
    }

    /// 12 sequences, a teacher, and shards of 2: a labelling run takes a moment.
    pub fn small() -> Self {
        let world = Self::new();
        let data = world.path("data/instructions.jsonl");
        let text = fs::read_to_string(&data).expect("the data is there");
        let rows: Vec<&str> = text.lines().take(12).collect();
        fs::write(data, rows.join("\n")).expect("the data is written");
        let recipe = RECIPE
            .replace("valid_rows = 12, test_rows = 12", "valid_rows = 0")
            .replace("sequences_per_shard = 10", "sequences_per_shard = 2");
        fs::write(world.path("recipe.toml"), recipe).expect("the recipe is written");
        world.run("prepare", &[]).succeeded();
        world.run("finetune", &["finetune.max_steps=2"]).succeeded();
        world
    }

    /// The small world, labelled, with a model for the student to start from.
    pub fn small_labelled() -> Self {
        let world = Self::small();
        world.run("teacher-labels", &[]).succeeded();
        world
            .run("finetune", &["finetune.max_steps=2", "finetune.seed=2", "output.teacher=../start"])
            .succeeded();
        world
    }

    /// Below the world's folder.
    pub fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    /// A stage of the recipe with overrides.
    pub fn run(&self, stage: &str, overrides: &[&str]) -> Said {
        run(&mut self.stage(stage, overrides))
    }

    /// A stage of the recipe with overrides, which takes differences by name.
    pub fn run_accepting(&self, stage: &str, overrides: &[&str], names: &[&str]) -> Said {
        let mut command = self.stage(stage, overrides);
        for name in names {
            command.args(["--accept", name]);
        }
        run(&mut command)
    }

    /// The same, not yet started.
    pub fn stage(&self, stage: &str, overrides: &[&str]) -> Command {
        let mut command = command(&[stage]);
        command.arg(self.path("recipe.toml"));
        for value in overrides {
            command.args(["--set", value]);
        }
        command
    }

    /// All files of label datasets below `path`, with what tells one attempt from another taken out of the commits.
    pub fn dataset(&self, path: &str) -> Files {
        let mut files = self.files(path);
        files.retain(|(name, _)| !name.ends_with("recipe.toml"));
        for (name, bytes) in &mut files {
            if name.parent().is_some_and(|parent| parent.ends_with("commits")) {
                let mut commit: serde_json::Value = serde_json::from_slice(bytes).expect("a commit is JSON");
                commit.as_object_mut().expect("an object").remove("attempt").expect("an attempt has a name");
                *bytes = serde_json::to_vec(&commit).expect("JSON is written");
            }
        }
        files
    }

    /// The lines of a training's metrics.jsonl without what the clock and the memory say: bit-equal from run to run.
    pub fn curve(&self, output: &str) -> Vec<serde_json::Value> {
        let path = self.path(&format!("run/{output}/metrics.jsonl"));
        let line = |line: &str| {
            let mut line: serde_json::Value = serde_json::from_str(line).expect("a line of JSON");
            let scalars = line.as_object_mut().expect("an object");
            for measured in ["tokens_per_second", "stall_share", "memory_bytes"] {
                scalars.remove(measured);
            }
            line
        };
        fs::read_to_string(path).expect("metrics are written").lines().map(line).collect()
    }

    /// Names and contents of all files below `path`.
    pub fn files(&self, path: &str) -> Files {
        let mut files = Vec::new();
        collect(&self.path(path), &self.path(path), &mut files);
        files.sort();
        files
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

/// Fails the test unless both have the same names and bytes.
#[track_caller]
pub fn assert_same_files(found: &[(PathBuf, Vec<u8>)], expected: &[(PathBuf, Vec<u8>)], after: &str) {
    let names = |files: &[(PathBuf, Vec<u8>)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(found), names(expected), "{after}");
    for ((name, found), (_, expected)) in found.iter().zip(expected) {
        assert!(found == expected, "{after}: {} differs", name.display());
    }
}

/// A file system of its own, mounted at a folder for as long as it lives.
pub struct Disk(PathBuf);

impl Disk {
    /// In memory. `None`, said aloud, where this user may not mount.
    pub fn mount(folder: PathBuf, options: &str) -> Option<Self> {
        let device = Path::new("softshard-test");
        Self::mounted(device, folder, &["-t", "tmpfs", "-o", options], "this user may not mount a disk")
    }

    /// An image of an ext4 disk, to which nothing is written but what is synced. `None`, said aloud, where there are no loop
    /// devices.
    pub fn ext4(image: &Path, folder: PathBuf) -> Option<Self> {
        let options = ["-t", "ext4", "-o", "loop,commit=3600,noatime"];
        Self::mounted(image, folder, &options, "this user may not mount an image through a loop device")
    }

    fn mounted(device: &Path, folder: PathBuf, options: &[&str], why_not: &str) -> Option<Self> {
        fs::create_dir_all(&folder).expect("the folder is made");
        if run(Command::new("mount").args(options).arg(device).arg(&folder)).code == 0 {
            return Some(Disk(folder));
        }
        skipped(why_not);
        None
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        Command::new("umount").arg(&self.0).status().expect("umount runs");
    }
}

fn collect(root: &Path, folder: &Path, files: &mut Vec<(PathBuf, Vec<u8>)>) {
    for entry in fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(root, &path, files);
        } else {
            let name = path.strip_prefix(root).expect("below the root").to_owned();
            files.push((name, fs::read(&path).expect("the file is there")));
        }
    }
}
