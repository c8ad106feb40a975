//! What a folder may hold for a label dataset to be written into it.

use std::path::Path;

use crate::durable::PRIVATE;
use crate::error::quoted;
use crate::manifest::read_manifest;
use crate::{Error, LabelPlan, LabelsManifest, json};

/// Refuses a folder that is no dataset and holds what others put there: a dataset has a `README.md` and a `data` of its own.
pub(crate) fn check_foreign(dir: &Path) -> Result<(), Error> {
    let Some(found) = foreign(dir)? else { return Ok(()) };
    // Looked at last: another writer may have begun meanwhile, which names its plan before all else.
    if dir.join("manifest.json").exists() || dir.join(PRIVATE).join("plan.json").exists() {
        return Ok(());
    }
    let expected = "an empty folder, or a dataset to go on with";
    Err(Error::bad(quoted(dir), expected, format_args!("`{found}`")).hint("choose another output folder"))
}

/// The first name in a folder that no writer without a plan leaves there; names with a dot in front are of no concern, nor is
/// what a new file system has.
fn foreign(dir: &Path) -> Result<Option<String>, Error> {
    let names = |dir: &Path| -> Result<Vec<String>, Error> {
        let entries = match fs_err::read_dir(dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let mut names = names.collect::<Result<Vec<_>, Error>>()?;
        names.retain(|name| !name.starts_with('.') && name != "lost+found");
        names.sort_unstable();
        Ok(names)
    };
    for name in names(dir)? {
        match name.as_str() {
            PRIVATE => {}
            "data" if dir.join("data").is_dir() => {
                if let Some(inner) = names(&dir.join("data"))?.into_iter().next() {
                    return Ok(Some(format!("data/{inner}")));
                }
            }
            _ => return Ok(Some(name)),
        }
    }
    Ok(None)
}

/// Refuses a plan that is there and another one.
pub(crate) fn check_plan(path: &Path, plan: &LabelPlan) -> Result<(), Error> {
    let found = json::read(path)?;
    if found == json::to_bytes(plan) {
        return Ok(());
    }
    let found: LabelPlan = json::parse(path, &found, LabelPlan::FORMAT, LabelPlan::VERSION)?;
    Err(Error::OtherPlan { path: path.to_owned(), differences: plan.differences(&found) })
}

/// Refuses a finished dataset of another plan: it need not have its plan beside its manifest.
pub(crate) fn check_finished(dir: &Path, plan: &LabelPlan) -> Result<(), Error> {
    let path = dir.join("manifest.json");
    if fs_err::symlink_metadata(&path).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
        return Ok(());
    }
    let (path, bytes) = read_manifest(dir)?;
    let hint = "remove the file if the dataset is to be finished again, or choose another output folder";
    let found: LabelsManifest = json::parse(&path, &bytes, LabelsManifest::FORMAT, LabelsManifest::VERSION)
        .map_err(|error| error.hint(hint))?;
    if found.plan != *plan {
        return Err(Error::OtherPlan { path, differences: plan.differences(&found.plan) });
    }
    let plan_blake3 = plan.blake3();
    if found.plan_blake3 != plan_blake3 {
        let place = format!("{} plan_blake3", quoted(&path));
        return Err(Error::bad(place, plan_blake3, found.plan_blake3).hint(hint));
    }
    Ok(())
}
