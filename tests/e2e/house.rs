//! The house: which crate may know which.

use std::{collections::BTreeSet, process::Command};

use softshard_e2e::root;

/// The table of docs/architecture.md: a crate and all that it may depend on in this workspace.
const ALLOWED: [(&str, &[&str]); 11] = [
    ("cli", &["prepare", "teacher", "student", "evaluate", "labels", "model", "losses", "share"]),
    ("prepare", &["labels"]),
    ("teacher", &["labels", "model", "losses"]),
    ("student", &["labels", "model", "losses", "products"]),
    ("evaluate", &["prepare", "model", "losses", "labels"]),
    ("share", &["labels"]),
    ("labels", &[]),
    ("model", &["losses", "products"]),
    ("losses", &["products"]),
    ("products", &[]),
    ("e2e", &[]),
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
    assert!(!uses("model", "parquet") && !uses("losses", "parquet"));
}
