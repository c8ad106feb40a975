//! Labels that go to an object store: the real binary against moto's S3, whole, killed, raced, and with every fault that it may have.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use softshard_e2e::{Background, Disk, Files, Said, World, assert_same_files, root, run, skipped};
use softshard_labels::Store as _;
use softshard_share::{Place, Writers};

/// A command that talks to nobody must say so in this time.
const SECONDS: Duration = Duration::from_secs(15);

/// Python with moto; `None`, said aloud, where it cannot be had.
fn python() -> Option<PathBuf> {
    static PYTHON: OnceLock<Option<PathBuf>> = OnceLock::new();
    let python = PYTHON.get_or_init(|| {
        let made = Command::new(root().join("tests/peers/venv.sh")).arg("ci").output().ok()?;
        made.status.success().then(|| String::from_utf8_lossy(&made.stdout).trim().into())
    });
    if python.is_none() {
        skipped("tests/peers/venv.sh ci makes no Python with moto here");
    }
    python.clone()
}

/// An S3 server of its own, ended when it is dropped.
struct S3 {
    server: Child,
    url: String,
    python: PathBuf,
}

impl S3 {
    fn start(fault: &str) -> Option<Self> {
        let python = python()?;
        let mut command = Command::new(&python);
        command
            .arg(root().join("tests/peers/s3.py"))
            .arg("serve")
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        if !fault.is_empty() {
            command.arg(fault);
        }
        let mut server = command.spawn().expect("the server starts");
        let mut url = String::new();
        let said = server.stdout.take().expect("its output is piped");
        BufReader::new(said).read_line(&mut url).expect("it says where it is");
        assert!(url.starts_with("http://"), "the server says {url:?}");
        Some(S3 { server, url: url.trim().to_owned(), python })
    }

    /// A stage that writes labels to `s3://labels/PREFIX`.
    fn stage(&self, world: &World, prefix: &str, more: &[&str]) -> Command {
        stage(world, &self.url, &format!("s3://labels/{prefix}"), more)
    }

    /// Requests so far.
    fn log(&self) -> String {
        let address = self.url.strip_prefix("http://").expect("an address");
        let mut stream = TcpStream::connect(address).expect("the server listens");
        stream.write_all(b"POST /_test/log HTTP/1.0\r\n\r\n").expect("it is asked");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        answer
    }

    fn wait_for(&self, part: &str, times: usize) {
        let began = Instant::now();
        while self.log().lines().filter(|line| line.contains(part)).count() < times {
            assert!(began.elapsed() < Duration::from_secs(60), "{part} never came {times} times");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// All that the bucket holds below `prefix`.
    fn dataset(&self, world: &World, prefix: &str) -> Files {
        let mut get = Command::new(&self.python);
        get.arg(root().join("tests/peers/s3.py")).args(["get", &self.url, "labels"]);
        let folder = world.path("copy");
        if folder.exists() {
            fs::remove_dir_all(&folder).expect("the last copy is removed");
        }
        fs::create_dir(&folder).expect("a folder is made");
        run(get.arg(folder)).succeeded();
        world.dataset(&format!("copy/{prefix}"))
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.server.kill().expect("the server is ended");
        self.server.wait().expect("the server ended");
    }
}

/// `teacher-labels` to a place below an endpoint.
fn stage(world: &World, url: &str, place: &str, more: &[&str]) -> Command {
    let output = format!("output.labels={place}");
    let mut stage = world.stage("teacher-labels", &[&[&output[..]], more].concat());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("AWS_")) {
        stage.env_remove(name);
    }
    stage.env("AWS_ENDPOINT_URL", url).env("AWS_ALLOW_HTTP", "true").env("AWS_REGION", "us-east-1");
    stage.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
    stage.env("NO_PROXY", "*");
    stage
}

/// A small world and the labels that come out of it.
fn labelled() -> (World, Files) {
    let world = World::small();
    world.run("teacher-labels", &["output.labels=expected"]).succeeded();
    let expected = world.dataset("run/expected");
    assert_eq!(expected.len(), 6 + 6 + 3, "shards, their commits, plan, card and manifest");
    (world, expected)
}

#[test]
fn a_store_gets_the_files_of_a_folder() {
    let Some(s3) = S3::start("") else { return };
    let (world, expected) = labelled();
    let scratch = world.path("scratch");
    fs::create_dir(&scratch).expect("a folder is made");
    run(s3.stage(&world, "run 1/a", &[]).env("TMPDIR", &scratch)).succeeded();
    let found = s3.dataset(&world, "run 1/a");
    assert_same_files(&found, &expected, "a run to a store");
    assert!(world.path("copy/run 1/a/recipe.toml").exists());
    assert_eq!(fs::read_dir(&scratch).expect("the folder is there").count(), 0, "scratch files stay behind");

    let mut rows = Command::new(&s3.python);
    rows.arg(root().join("tests/peers/s3.py")).args(["rows", &s3.url, "labels/run 1/a/train/data"]);
    assert_eq!(run(&mut rows).succeeded().stdout.trim(), "12", "pyarrow reads what is there");

    // A finished dataset is looked at, not written or read again.
    let before = s3.log().lines().count();
    let said = run(&mut s3.stage(&world, "run 1/a", &[])).succeeded();
    assert!(said.stdout.contains("6 there before"), "{}", said.stdout);
    let log = s3.log();
    let data: Vec<&str> = log.lines().skip(before).filter(|line| line.contains("/data/")).collect();
    assert_eq!(data, [""; 0], "{log}");
    assert_same_files(&s3.dataset(&world, "run 1/a"), &expected, "a second run");

    // Another plan is refused, and what is there stays.
    run(&mut s3.stage(&world, "run 1/a", &["labels.temperatures=[3.0]"]))
        .failed(3, &["s3://labels/run 1/a/train/_softshard/plan.json", "temperatures"]);
    assert_same_files(&s3.dataset(&world, "run 1/a"), &expected, "another plan");
    // `run 1/b/train` holds what is no dataset: the labels of `run 1/b/train/train`.
    run(&mut s3.stage(&world, "run 1/b/train", &[])).succeeded();
    run(&mut s3.stage(&world, "run 1/b", &[]))
        .failed(3, &["expected an empty folder", "`train/recipe.toml`"]);
}

/// What a stage that reads labels says of a store.
#[test]
fn stages_that_read_labels_say_how_to_copy_them() {
    let world = World::new();
    let place = "output.labels=s3://labels/a";
    for stage in ["train-student", "evaluate"] {
        world
            .run(stage, &[place])
            .failed(2, &["expected a folder", "aws s3 cp --recursive s3://labels/a labels"]);
    }
    softshard_e2e::softshard(&["labels", "verify", "s3://labels/a"]).failed(2, &["aws s3 cp --recursive"]);
}

#[test]
fn a_killed_run_resumes_to_the_same_objects() {
    let Some(s3) = S3::start("") else { return };
    let (world, expected) = labelled();
    let scratch = world.path("scratch");
    fs::create_dir(&scratch).expect("a folder is made");
    for (round, (part, times)) in [
        ("PUT /labels/killed-0/train/_softshard/plan.json", 1),
        ("/killed-1/train/data/", 1),
        ("/killed-2/train/_softshard/commits/", 3),
    ]
    .into_iter()
    .enumerate()
    {
        let prefix = format!("killed-{round}");
        let mut child =
            s3.stage(&world, &prefix, &[]).env("TMPDIR", &scratch).spawn().expect("the binary starts");
        s3.wait_for(part, times);
        child.kill().expect("SIGKILL is sent");
        assert!(child.wait().expect("the child ends").code().is_none(), "done before it was killed");
        run(s3.stage(&world, &prefix, &[]).env("TMPDIR", &scratch)).succeeded();
        assert_same_files(&s3.dataset(&world, &prefix), &expected, &format!("killed at {part}"));
        assert_eq!(
            fs::read_dir(&scratch).expect("the folder is there").count(),
            0,
            "scratch files of the dead"
        );
    }
}

#[test]
fn two_writers_and_a_zombie_leave_one_dataset() {
    let Some(s3) = S3::start("") else { return };
    let (world, expected) = labelled();
    let writers = [0, 1].map(|_| s3.stage(&world, "two", &[]).spawn().expect("the binary starts"));
    for writer in writers {
        Said::new(&writer.wait_with_output().expect("a writer ends")).succeeded();
    }
    assert_same_files(&s3.dataset(&world, "two"), &expected, "two writers");

    // One stands still in the middle, as on a machine that sleeps, and goes on when all is done.
    let zombie = Background::start(&mut s3.stage(&world, "zombie", &[]));
    s3.wait_for("/zombie/train/data/", 2);
    signal(&zombie, "-STOP");
    run(&mut s3.stage(&world, "zombie", &[])).succeeded();
    assert_same_files(&s3.dataset(&world, "zombie"), &expected, "beside a zombie");
    signal(&zombie, "-CONT");
    zombie.end().succeeded();
    assert_same_files(&s3.dataset(&world, "zombie"), &expected, "behind a zombie");
}

fn signal(child: &Background, name: &str) {
    let sent = Command::new("kill").args([name, &child.id().to_string()]).status();
    assert!(sent.expect("kill runs").success());
}

#[test]
fn errors_that_pass_are_survived() {
    let Some(s3) = S3::start("flaky") else { return };
    let (world, expected) = labelled();
    run(&mut s3.stage(&world, "flaky", &[])).succeeded();
    assert_same_files(&s3.dataset(&world, "flaky"), &expected, "a server that answers now and then");
}

/// Covers uploads in parts: whole, with a lost answer, and with an upload that the store forgot. Runs itself again, as credentials
/// come from the environment.
#[test]
fn large_objects_go_in_parts_and_survive_a_bad_end() {
    const URL: &str = "AWS_ENDPOINT_URL";
    if std::env::var_os("SOFTSHARD_TEST_PARTS").is_none() {
        let Some(s3) = S3::start("multipart") else { return };
        let mut again = Command::new(std::env::current_exe().expect("this program"));
        again.args(["--exact", "large_objects_go_in_parts_and_survive_a_bad_end", "--nocapture"]);
        again.env("SOFTSHARD_TEST_PARTS", "1").env("AWS_ALLOW_HTTP", "yes").env("AWS_REGION", "us-east-1");
        again.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test").env("NO_PROXY", "*");
        run(again.env(URL, &s3.url)).succeeded();
        let log = s3.log();
        let puts = |name: &str| {
            log.lines().filter(|line| line.starts_with(&format!("PUT /labels/parts/{name}"))).count()
        };
        assert_eq!((puts("lost"), puts("gone")), (3, 6), "{log}");
        return;
    }
    let place = Place::parse("s3://labels/parts").expect("a place");
    let store = softshard_share::S3::open(place, Writers::Many).expect("the store is there");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("large");
    let bytes: Vec<u8> = (0..40_u32 << 18).flat_map(u32::to_le_bytes).collect();
    fs::write(&path, &bytes).expect("a file");
    for name in ["lost", "gone"] {
        store.upload(name, &path).expect("the file is uploaded");
        let found = store.get(name, 1 << 30).expect("it is read").expect("it is there");
        assert!(found == bytes, "{name} is not what was sent");
    }
    let mut listed = store.list("").expect("they are listed");
    listed.sort();
    let size = 40 << 20;
    assert_eq!(listed, [("gone".to_owned(), size), ("lost".to_owned(), size)]);
}

#[test]
fn nobody_there_is_said_within_seconds() {
    let world = World::small();
    let closed = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address");
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = silent.local_addr().expect("its address");
    // What takes connections and never answers; what has closed its port; what no network leads to (RFC 5737).
    for (url, found) in [
        (format!("http://{address}"), "timed out"),
        (format!("http://{closed}"), "refused"),
        ("http://192.0.2.1".to_owned(), ""),
        ("http://no-such-host.invalid".to_owned(), ""),
    ] {
        let began = Instant::now();
        let said = run(&mut stage(&world, &url, "s3://labels/a", &[]));
        let took = began.elapsed();
        said.failed(
            1,
            &[
                "`s3://labels/a`: expected a place to write to, found no answer of",
                &url,
                found,
                "AWS_ENDPOINT_URL",
            ],
        );
        assert!(took < SECONDS, "{url}: {took:?}");
        eprintln!("{url}: {took:?}");
    }
}

#[test]
fn wrong_buckets_and_keys_are_said_before_the_teacher_loads() {
    let world = World::small();
    fs::write(world.path("run/teacher/model/model.safetensors"), "no weights")
        .expect("the teacher is broken");
    let Some(s3) = S3::start("") else { return };
    run(&mut stage(&world, &s3.url, "s3://other/a", &[]))
        .failed(1, &["`s3://other/a`", "no such bucket", "hint: "]);
    run(s3.stage(&world, "a", &[]).env("AWS_ALLOW_HTTP", "false")).failed(1, &["AWS_ALLOW_HTTP"]);
    let began = Instant::now();
    let mut without = s3.stage(&world, "a", &[]);
    run(without.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY"))
        .failed(1, &["`s3://labels/a`", "AWS_ACCESS_KEY_ID"]);
    assert!(began.elapsed() < SECONDS, "{:?}", began.elapsed());
    let Some(s3) = S3::start("forbidden") else { return };
    run(&mut s3.stage(&world, "a", &[]))
        .failed(1, &["`s3://labels/a`", "InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"]);
}

#[test]
fn a_store_that_lets_two_win_has_one_writer() {
    for (fault, seen) in [("ignores", "an object was created twice"), ("refuses", "it was refused")] {
        let Some(s3) = S3::start(fault) else { return };
        let (world, expected) = labelled();
        let said = run(&mut s3.stage(&world, "a", &[])).succeeded();
        assert!(
            said.stderr.contains(seen) && said.stderr.contains("no other process may write"),
            "{}",
            said.stderr
        );
        assert_same_files(&s3.dataset(&world, "a"), &expected, fault);
        run(s3.stage(&world, "b", &[]).args(["--task", "0", "--of", "2"]))
            .failed(1, &["`s3://labels/b`", seen, "only one process may write"]);
    }
}

/// Covers a scratch disk that is full in the middle of a shard: what was committed stays, and a run with room ends the same.
#[test]
fn a_full_scratch_disk_is_named_and_loses_nothing() {
    let Some(s3) = S3::start("") else { return };
    let (world, expected) = labelled();
    let scratch = world.path("scratch");
    let Some(_disk) = Disk::mount(scratch.clone(), "size=32k") else { return };
    let place = scratch.to_str().expect("a path of ASCII");
    let large = ["labels.sequences_per_shard=12", r#"labels.selection={ kind = "top_k", k = 400 }"#];
    let said = run(s3.stage(&world, "full", &large).env("TMPDIR", &scratch));
    said.failed(1, &["No space left on device", place, "bytes)"]);
    run(s3.stage(&world, "room", &[]).env("TMPDIR", &scratch)).succeeded();
    assert_same_files(&s3.dataset(&world, "room"), &expected, "shards that fit");
}
