//! What other teams hold on to: the schemas.

use std::{collections::BTreeMap, fs, path::Path};

use softshard_e2e::{root, softshard};

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
