//! The binary below strace: killed at system calls, or with calls that fail.
//!
//! Calls are counted by thread, as strace counts them for `when=`.

use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
    process::Command,
};

use crate::{Said, run, skipped};

/// System calls that change a file system. A C library uses one of each pair.
pub const CALLS: &str =
    "write,fsync,fdatasync,link,linkat,rename,renameat,renameat2,unlink,unlinkat,openat,mkdir,mkdirat";

/// Whether strace is there and may trace; said aloud if not.
pub fn may_trace() -> bool {
    match Command::new("strace").args(["-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "true"]).output() {
        Err(_) => skipped("strace is not installed"),
        Ok(output) if !output.status.success() => skipped("this strace cannot trace here"),
        Ok(_) => return true,
    }
    false
}

/// Runs a command below strace; the `calls` go to `trace`, and `fault` happens at one of them.
pub fn traced(command: &Command, trace: &Path, calls: &str, fault: &str) -> Said {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-y", "-qq", "-s", "8", "-o"]).arg(trace);
    if !fault.contains("signal") {
        strace.arg("--seccomp-bpf"); // faster, but sends no signals
    }
    strace.args(["-e", &format!("trace={calls}")]);
    if !fault.is_empty() {
        strace.args(["-e", &format!("inject={calls}:{fault}")]);
    }
    run(strace.arg(command.get_program()).args(command.get_args()))
}

/// Numbers of the calls that change something below `output`, by name, as the first thread that gets there counts them.
pub fn changing_calls(trace: &str, output: &Path) -> Vec<(String, Vec<usize>)> {
    let output = output.to_str().expect("a path of ASCII");
    let (descriptor, path) = (format!("<{output}"), format!("\"{output}"));
    let mut counts: HashMap<(&str, &str), usize> = HashMap::new();
    let mut numbers: HashMap<&str, usize> = HashMap::new();
    let mut changing: HashMap<&str, Vec<usize>> = HashMap::new();
    for line in trace.lines() {
        let Some((thread, call)) = line.split_once(' ') else { continue };
        let Some((name, arguments)) = call.trim_start().split_once('(') else { continue };
        if name.starts_with(['<', '+', '-']) {
            continue; // the second half of a call, or an end
        }
        let number = counts.entry((thread, name)).or_default();
        *number += 1;
        let furthest = numbers.entry(name).or_default();
        if *number <= *furthest {
            continue; // another thread was there before
        }
        *furthest = *number;
        let writes = name != "openat" || arguments.contains("O_CREAT");
        if writes && (arguments.contains(&descriptor) || name != "write" && arguments.contains(&path)) {
            changing.entry(name).or_default().push(*number);
        }
    }
    let mut changing: Vec<_> =
        changing.into_iter().map(|(name, numbers)| (name.to_owned(), numbers)).collect();
    changing.sort();
    changing
}

/// At most `most` of `numbers`, the first and the last among them.
pub fn sample(numbers: &[usize], most: usize) -> BTreeSet<usize> {
    let last = numbers.len() - 1;
    let steps = last.min(most - 1);
    (0..=steps).map(|step| numbers[(last * step).checked_div(steps).unwrap_or(0)]).collect()
}
