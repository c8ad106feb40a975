//! Paths of a recipe and of the command line: of this machine, or of a store.

use std::path::{Component, Path, PathBuf};

use softshard_share::Place;

use crate::shell;

/// A path that names a store.
pub(super) fn remote(path: &Path) -> Option<&str> {
    path.to_str().filter(|text| Place::is_one(text))
}

/// For the parser of the command line: a path of this machine.
///
/// # Errors
/// It names a store.
pub(crate) fn local(text: &str) -> Result<PathBuf, String> {
    match remote(Path::new(text)) {
        None => Ok(text.into()),
        Some(place) => Err(not_local(place)),
    }
}

/// What is said of a store where files of this machine are read.
pub(super) fn not_local(place: &str) -> String {
    format!(
        "expected a folder of this machine\nhint: copy the labels here: `aws s3 cp --recursive {} labels`",
        shell::word(place)
    )
}

/// `path` from `base`, without `.` and `..`, so that messages are short to read.
pub(super) fn absolute(base: &Path, path: &Path) -> PathBuf {
    let mut absolute = PathBuf::new();
    for component in base.join(path).components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => drop(absolute.pop()),
            component => absolute.push(component),
        }
    }
    absolute
}
