//! Revisions of a repository in the Hugging Face cache.

use std::path::{Path, PathBuf};

use crate::Error;

/// Longer than the name of any commit.
const MAX_REF_BYTES: u64 = 256;

/// The folder of a revision: `main` of a repository in the Hub's cache (`models--owner--name`), or another branch, tag or commit of it;
/// a folder that is no such repository is itself what is opened.
///
/// # Errors
/// The cache does not have the revision, or one is asked of a plain folder.
pub fn snapshot(folder: &Path, revision: Option<&str>) -> Result<PathBuf, Error> {
    let place = || format!("`{}`: revision", folder.display());
    let snapshots = folder.join("snapshots");
    if !snapshots.is_dir() {
        return match revision {
            None => Ok(folder.to_owned()),
            Some(name) => Err(Error::bad(place(), format!("a repository in the Hub's cache, as `{name}` is asked for"), "a plain folder")
                .hint("a revision is a folder below `snapshots/` of models--owner--name; name a plain folder without one")),
        };
    }
    let name = revision.unwrap_or("main");
    // A part of a name like any other: nothing outside of the repository is opened.
    if name.is_empty() || name.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(Error::bad(place(), "a branch, a tag or a commit", format!("`{name}`")));
    }
    let commit = if snapshots.join(name).is_dir() && !name.contains('/') {
        name.to_owned()
    } else {
        let file = folder.join("refs").join(name);
        if !file.is_file() {
            return Err(Error::bad(place(), format!("`{name}`"), "no such branch, tag or commit")
                .hint("download it first: `hf download OWNER/NAME --revision REVISION`"));
        }
        softshard_model::read_text(&file, MAX_REF_BYTES)?.trim().to_owned()
    };
    let is_plain = !commit.is_empty() && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
    let found = snapshots.join(&commit);
    if is_plain && found.is_dir() {
        return Ok(found);
    }
    Err(Error::bad(place(), format!("a snapshot of `{name}`"), format!("none called `{commit}`"))
        .hint("download it again"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn revisions_are_snapshots_of_a_cache() {
        let cache = tempfile::tempdir().unwrap();
        let repository = cache.path().join("models--owner--name");
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let other = "89abcdef0123456789abcdef0123456789abcdef";
        for one in [commit, other] {
            fs::create_dir_all(repository.join("snapshots").join(one)).unwrap();
        }
        fs::create_dir_all(repository.join("refs/refs/pr")).unwrap();
        fs::write(repository.join("refs/main"), commit).unwrap();
        fs::write(repository.join("refs/refs/pr/1"), format!("{other}\n")).unwrap();
        fs::write(repository.join("refs/lost"), "../../..").unwrap();
        let of = |revision| snapshot(&repository, revision);
        let folder = |name: &str| repository.join("snapshots").join(name);
        assert_eq!(of(None).unwrap(), folder(commit));
        assert_eq!(of(Some("refs/pr/1")).unwrap(), folder(other));
        assert_eq!(of(Some(other)).unwrap(), folder(other));
        for (bad, words) in [
            ("v2", "no such branch, tag or commit"),
            ("lost", "none called `../../..`"),
            ("../..", "found `../..`"),
            ("", "found ``"),
        ] {
            let error = of(Some(bad)).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        assert_eq!(snapshot(cache.path(), None).unwrap(), cache.path());
        let error = snapshot(cache.path(), Some("main")).unwrap_err().to_string();
        assert!(error.contains("a plain folder"), "{error}");
    }
}
