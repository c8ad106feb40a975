//! The house: which crate may know which, and which room of `labels`.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use softshard_e2e::root;

/// The table of docs/architecture.md: a crate and all that it may depend on in this workspace.
const ALLOWED: [(&str, &[&str]); 12] = [
    ("cli", &["prepare", "teacher", "student", "evaluate", "labels", "model", "losses", "scorers", "share"]),
    ("prepare", &["labels"]),
    ("teacher", &["labels", "model", "losses"]),
    ("student", &["labels", "model", "losses", "products"]),
    ("evaluate", &["prepare", "model", "losses", "labels", "scorers"]),
    ("scorers", &["model"]),
    ("share", &["labels"]),
    ("labels", &[]),
    ("model", &["products"]),
    ("losses", &["products"]),
    ("products", &[]),
    ("e2e", &[]),
];

/// Rooms of crates/labels/src, from the ground up. Those of the last floor do not know each other.
const FLOORS: [&[&str]; 6] = [
    &["values", "observer"],
    &["host"],
    &["parquet"],
    &["shard"],
    &["dataset"],
    &["judge", "import", "export", "merge"],
];

/// Workspace crates by their short names, with the names of their normal and build dependencies.
fn packages() -> Vec<(String, BTreeSet<String>)> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let text = |value: &serde_json::Value| value.as_str().expect("a string").to_owned();
    let list = |value: &serde_json::Value| value.as_array().expect("a list").clone();
    let package = |package: &serde_json::Value| {
        let used =
            list(&package["dependencies"]).into_iter().filter(|dependency| dependency["kind"] != "dev");
        (text(&package["name"]), used.map(|dependency| text(&dependency["name"])).collect())
    };
    list(&metadata["packages"]).iter().map(package).collect()
}

/// All packages that a crate of the workspace is built from.
fn tree(short: &str) -> BTreeSet<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["tree", "--offline", "--edges", "normal,build", "--prefix", "none", "--format", "{p}"])
        .args(["--package", &format!("softshard-{short}")])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("cargo prints text");
    text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

#[test]
fn dependencies_follow_the_table() {
    let packages = packages();
    assert_eq!(packages.len(), ALLOWED.len(), "every crate stands in the table");
    for (name, dependencies) in packages {
        let short = name.strip_prefix("softshard-").expect("packages are softshard-<folder>");
        let (_, allowed) = ALLOWED.iter().find(|(crate_name, _)| *crate_name == short).expect("in the table");
        for dependency in dependencies.iter().filter_map(|name| name.strip_prefix("softshard-")) {
            assert!(allowed.contains(&dependency), "{short} must not depend on {dependency}");
        }
    }
}

#[test]
fn formats_know_no_tensors_and_tensors_no_formats() {
    let packages = packages();
    let uses = |short: &str, dependency: &str| {
        let name = format!("softshard-{short}");
        packages.iter().any(|(package, dependencies)| *package == name && dependencies.contains(dependency))
    };
    assert!(tree("model").contains("burn"), "the tree has names of packages");
    let labels = tree("labels");
    for tensors in ["burn", "burn-tensor", "burn-flex", "cubecl", "cubecl-core", "tokenizers", "clap"] {
        assert!(!labels.contains(tensors), "another team reads labels without {tensors}");
    }
    // What one waits for before the first label is read; more than this needs a reason.
    assert!(labels.len() <= 70, "labels needs {} packages: {labels:?}", labels.len());
    for short in ["model", "losses", "scorers"] {
        assert!(!uses(short, "parquet"), "{short} knows no Parquet");
    }
}

#[test]
fn no_import_between_the_rooms_of_labels_runs_up() {
    let source = root().join("crates/labels/src");
    let floor = |room: &str| FLOORS.iter().position(|rooms| rooms.contains(&room));
    let mut rooms = BTreeSet::new();
    for path in rust_files(&source) {
        let path = path.strip_prefix(&source).expect("found there");
        let room = path.iter().next().and_then(|part| Path::new(part).file_stem()).expect("a name");
        let room = room.to_str().expect("a Rust file has a plain name");
        if room == "lib" {
            continue; // docs and re-exports
        }
        let own = floor(room).unwrap_or_else(|| panic!("{}: {room} is not a room", path.display()));
        rooms.insert(room.to_owned());
        let text = fs::read_to_string(source.join(path)).expect("readable");
        for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
            for used in line.split("crate::").skip(1) {
                let used = used.split(|letter: char| !(letter.is_alphanumeric() || letter == '_')).next();
                let used = used.expect("a part of a text");
                let is_below = used == room || floor(used).is_some_and(|floor| floor < own);
                assert!(is_below, "{}: `{}` is not below {room}", path.display(), line.trim());
            }
        }
    }
    assert_eq!(rooms.len(), FLOORS.concat().len(), "every room is there: {rooms:?}");
}

/// All Rust files below a folder.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}
