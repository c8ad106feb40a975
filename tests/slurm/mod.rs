//! A real Slurm of three nodes on this host, and its processes one by one.

use std::{
    fs,
    net::TcpListener,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant, SystemTime},
};

use softshard_e2e::{Background, Said, World, binary, root, run, skipped};

/// The cluster; everything of it ends with it.
pub(crate) struct Cluster {
    folder: tempfile::TempDir,
}

impl Cluster {
    /// Started and idle. Without Slurm: `None`, said aloud, but a failure where all tests must run.
    pub(crate) fn start() -> Option<Self> {
        let cluster = Cluster { folder: tempfile::tempdir().expect("a temporary folder") };
        // Held together, so that they are four; the daemons take them a moment later.
        let listeners = [(); 4].map(|()| TcpListener::bind(("127.0.0.1", 0)).expect("a port"));
        let ports = listeners.map(|listener| listener.local_addr().expect("an address").port().to_string());
        let said = cluster.script("start", &ports.each_ref().map(String::as_str));
        match said.code {
            0 => Some(cluster),
            127 => {
                let why = said.stderr.trim().to_owned();
                assert!(std::env::var_os("SOFTSHARD_ALL_TESTS").is_none(), "this test must run: {why}");
                skipped(&why);
                None
            }
            _ => panic!("the cluster does not start: {said:?}\n{}", cluster.logs()),
        }
    }

    fn script(&self, action: &str, arguments: &[&str]) -> Said {
        let mut command = Command::new(root().join("tests/slurm/cluster.sh"));
        run(command.arg(action).arg(self.folder.path()).args(arguments))
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("slurm.conf")
    }

    /// A command that finds this cluster.
    pub(crate) fn command(&self, mut command: Command) -> Said {
        run(command.env("SLURM_CONF", self.config()))
    }

    /// What a command of Slurm says.
    #[track_caller]
    pub(crate) fn slurm(&self, name: &str, arguments: &[&str]) -> String {
        let mut command = Command::new(name);
        command.args(arguments);
        self.command(command).succeeded().stdout
    }

    /// Waits until the controller has saved what it knows, which it does some seconds late. Submits a job that never runs, so that
    /// there is something to save; its id.
    pub(crate) fn wait_for_saved_state(&self) -> String {
        let state = self.folder.path().join("state/job_state");
        let before = SystemTime::now();
        let held = self.slurm("sbatch", &["--parsable", "--hold", "--output=/dev/null", "--wrap=true"]);
        let is_saved =
            || fs::metadata(&state).and_then(|file| file.modified()).is_ok_and(|saved| saved > before);
        wait_until("the controller saves its state", is_saved);
        held.trim().to_owned()
    }

    /// Kills the controller.
    pub(crate) fn kill_controller(&self) {
        self.kill_daemon("slurmctld.pid");
    }

    /// Starts it again.
    pub(crate) fn restart_controller(&self, arguments: &[&str]) {
        self.script("controller", arguments).succeeded();
        wait_until("the controller answers", || {
            let mut ping = Command::new("scontrol");
            ping.arg("ping");
            self.command(ping).stdout.contains("is UP")
        });
    }

    /// Kills all of a node at once: its daemon, what watches its job, and the job, the worker last.
    pub(crate) fn kill_node(&self, node: &str) {
        self.kill_daemon(&format!("slurmd-{node}.pid"));
        self.kill_jobs(Some(node));
    }

    /// Kills what runs the jobs of a node, or of all: Slurm's step daemon, the script, and the worker last.
    fn kill_jobs(&self, node: Option<&str>) {
        let of_jobs = self.processes(node);
        let is_step = |process: &u32| {
            fs::read_to_string(format!("/proc/{process}/comm")).is_ok_and(|name| name.trim() == "slurmstepd")
        };
        let steps = of_jobs.iter().filter_map(|process| parent(*process)).filter(is_step);
        let all: Vec<u32> = steps.chain(of_jobs.iter().copied()).collect();
        for process in &all {
            signal(*process, "KILL");
        }
        wait_until("the jobs' processes are gone", || !all.iter().any(|process| is_alive(*process)));
    }

    /// Starts the daemon of a node that was killed.
    pub(crate) fn restart_node(&self, node: &str) {
        self.script("node", &[node]).succeeded();
    }

    fn kill_daemon(&self, pid_file: &str) {
        let text = fs::read_to_string(self.folder.path().join(pid_file)).expect("a daemon has a pid file");
        let process = text.trim().parse().expect("a process id");
        signal(process, "KILL");
        wait_until("a daemon is gone", || !is_alive(process));
    }

    /// Processes of the jobs of a node, or of all.
    fn processes(&self, node: Option<&str>) -> Vec<u32> {
        let config = format!("SLURM_CONF={}", self.config().display());
        let node = node.map(|node| format!("SLURMD_NODENAME={node}"));
        let has = |environment: &[u8], entry: &str| {
            environment.split(|byte| *byte == 0).any(|found| found == entry.as_bytes())
        };
        let is_of_job = |process: &u32| {
            let environment = fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
            has(&environment, &config)
                && match &node {
                    Some(node) => has(&environment, node),
                    None => environment.windows(16).any(|part| part == b"SLURMD_NODENAME="),
                }
        };
        let entries = fs::read_dir("/proc").expect("/proc is there").flatten();
        let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        ids.filter(is_of_job).collect()
    }

    /// The worker that runs on a node now.
    fn worker(&self, node: &str) -> Option<u32> {
        let is_worker =
            |process: &u32| fs::read_link(format!("/proc/{process}/exe")).is_ok_and(|path| path == binary());
        self.processes(Some(node)).into_iter().find(is_worker)
    }

    /// Stops the next worker of a node, which goes on when it is told to.
    pub(crate) fn pause_worker(&self, node: &str) -> u32 {
        let mut paused = None;
        wait_until(&format!("a worker runs on {node}"), || {
            paused = self.worker(node).filter(|process| {
                signal(*process, "STOP");
                is_stopped(*process)
            });
            paused.is_some()
        });
        paused.expect("a worker was found")
    }

    /// Waits until no job is left, pending ones included.
    pub(crate) fn wait_for_jobs(&self) {
        let began = Instant::now();
        while !self.slurm("squeue", &["--noheader"]).trim().is_empty() {
            assert!(began.elapsed() < Duration::from_secs(120), "{}", self.logs());
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// What Slurm knows of its jobs and says in its logs: for a test that failed.
    fn logs(&self) -> String {
        let mut text = String::new();
        for command in [&["squeue"][..], &["sinfo", "--long", "--Node"], &["scontrol", "show", "jobs"]] {
            let mut asked = Command::new(command[0]);
            asked.args(&command[1..]);
            text += &self.command(asked).stdout;
        }
        for name in ["slurmctld", "slurmd-n1", "slurmd-n2", "slurmd-n3", "munged"] {
            let log = fs::read_to_string(self.folder.path().join(format!("{name}.log"))).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(30).collect();
            text += &format!("── {name}\n");
            last.iter().rev().for_each(|line| text += &format!("{line}\n"));
        }
        text
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Of a test that failed: another panic would hide why, and leave daemons behind.
        for end in [&|| self.kill_jobs(None), &|| drop(self.script("stop", &[]))] as [&dyn Fn(); 2] {
            drop(panic::catch_unwind(AssertUnwindSafe(end)));
        }
    }
}

/// A worker that is started outside of Slurm.
pub(crate) fn outside(world: &World, overrides: &[&str], task: usize, of: usize) -> Background {
    let mut command = world.stage("teacher-labels", overrides);
    command.args(["--task", &task.to_string(), "--of", &of.to_string()]);
    Background::start(&mut command)
}

/// Looks often, for a minute at most.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut due: impl FnMut() -> bool) {
    let began = Instant::now();
    while !due() {
        assert!(began.elapsed() < Duration::from_secs(60), "not within a minute: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Sends a signal; the process may be gone.
pub(crate) fn signal(process: u32, name: &str) {
    let said = run(Command::new("kill").args([format!("-{name}"), process.to_string()]));
    assert!(said.code == 0 || !is_alive(process), "{name} to {process}: {said:?}");
}

/// Whether a process runs, or could.
pub(crate) fn is_alive(process: u32) -> bool {
    state(process).is_some_and(|state| state != 'Z')
}

fn is_stopped(process: u32) -> bool {
    // A moment passes between the signal and the stop.
    for _ in 0..500 {
        match state(process) {
            Some('T' | 't') => return true,
            None | Some('Z') => return false,
            Some(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
    false
}

fn state(process: u32) -> Option<char> {
    stat(process)?.chars().next()
}

/// The process that started another.
pub(crate) fn parent(process: u32) -> Option<u32> {
    stat(process)?.split_whitespace().nth(1)?.parse().ok()
}

/// What stands behind the name of a process: its state, its parent and so on.
fn stat(process: u32) -> Option<String> {
    let text = fs::read_to_string(Path::new("/proc").join(process.to_string()).join("stat")).ok()?;
    Some(text.rsplit_once(") ")?.1.to_owned())
}
