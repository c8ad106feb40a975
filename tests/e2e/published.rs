//! What other teams hold on to: the schemas, and the crate of the labels.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use softshard_e2e::{Said, binary, root, run, softshard};

/// Names and contents of the files in a folder.
fn texts(folder: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let name = |path: &Path| path.file_name().expect("a name").to_string_lossy().into_owned();
    paths.map(|path| (name(&path), fs::read_to_string(&path).expect("a text"))).collect()
}

#[test]
fn the_schemas_are_those_of_the_types() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().to_str().expect("a path of ASCII");
    softshard(&["schema", "--all", path]).succeeded();
    let (published, made) = (texts(&root().join("schemas")), texts(folder.path()));
    let names = |texts: &BTreeMap<String, String>| texts.keys().cloned().collect::<Vec<_>>();
    assert_eq!(
        names(&published),
        names(&made),
        "schemas/ holds other files than the types give: run `make schemas`"
    );
    for (name, text) in &made {
        assert!(published[name] == *text, "schemas/{name} is not what the types give: run `make schemas`");
        let schema = name.trim_end_matches(".txt").trim_end_matches(".schema.json");
        assert_eq!(softshard(&["schema", schema]).succeeded().stdout, *text);
    }
}

#[test]
fn a_schema_that_is_not_there_is_refused_with_those_that_are() {
    softshard(&["schema", "manifest"])
        .failed(2, &["schema `manifest`: expected one of labels.parquet, ", "sequences-manifest", "recipe"]);
    softshard(&["schema"]).failed(2, &["<NAME|--all <DIR>>"]);
}

/// The examples of the labels crate, built from the present sources.
fn example(name: &str, arguments: &[&str]) -> Said {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--workspace", "--quiet", "--example", name]).current_dir(root());
    run(&mut build).succeeded();
    let path: PathBuf = binary().parent().expect("a folder").join("examples").join(name);
    run(Command::new(path).args(arguments))
}

#[test]
fn the_examples_write_and_read_labels_that_the_binary_takes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().to_str().expect("a path of ASCII");
    for _ in 0..2 {
        let said = example("write", &[path]).succeeded();
        assert_eq!(said.stdout, format!("20 sequences, 160 labelled tokens: {path}\n"));
    }
    softshard(&["labels", "verify", path]).succeeded();
    let inspected = softshard(&["labels", "inspect", path, "--row", "5"]).succeeded().stdout;
    let key = inspected.split("key ").nth(1).and_then(|rest| rest.get(..32)).expect("a key");
    let said = example("read", &[path, key]).succeeded();
    let expected = format!("20 sequences, 160 labelled tokens\nsequence {key}: 12 tokens, 8 labelled\n");
    assert!(
        said.stdout.starts_with(&expected) && said.stdout.ends_with("\n1280 entries\n"),
        "{}",
        said.stdout
    );
    assert_eq!(example("read", &[&format!("{path}/nowhere")]).code, 1);
}
