//! Where a label dataset is written: a folder, or a place of an object store.
//!
//! A folder has durable code of its own (`host/durable.rs`). In a store a shard is written, synced and read back in a scratch
//! folder of this machine, and goes under the name that carries its hash: same bytes, same name, so it does not matter how
//! many upload it. Plan and commits are created exclusively in both.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::manifest::{LabelsManifest, folder_problems, read_manifest};
use super::plan::LabelPlan;
use super::store::Store;
use crate::host::{Links, PRIVATE, Scratch, durable, parallel, regular};
use crate::shard::{ShardRecord, WrittenFile, is_data_file};
use crate::values::{Error, json, quoted};

/// Name of the plan in a dataset.
pub(crate) const PLAN: &str = "_softshard/plan.json";
/// Requests at a time: they wait for the network, not for a core.
const REQUESTS: usize = 32;

/// Where a label dataset is written. Any path is one: `From` takes what `AsRef<Path>` takes.
#[derive(Clone, Debug)]
pub enum Output {
    /// A folder of a file system with hard links.
    Folder(PathBuf),
    /// Objects of a store below a prefix; empty for all of it.
    Store(Arc<dyn Store>, String),
}

impl<P: AsRef<Path>> From<P> for Output {
    fn from(path: P) -> Self {
        Self::Folder(path.as_ref().to_owned())
    }
}

impl From<&Output> for Output {
    fn from(output: &Output) -> Self {
        output.clone()
    }
}

impl fmt::Display for Output {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(dir) => write!(to, "{}", dir.display()),
            Self::Store(store, prefix) if prefix.is_empty() => write!(to, "{store}"),
            Self::Store(store, prefix) => write!(to, "{store}/{prefix}"),
        }
    }
}

impl Output {
    /// A place below this one.
    #[must_use]
    pub fn join(&self, name: &str) -> Self {
        match self {
            Self::Folder(dir) => Self::Folder(dir.join(name)),
            Self::Store(store, _) => Self::Store(store.clone(), self.key(name)),
        }
    }

    /// Gives the file `name` this content: what lies beside datasets, as a recipe does.
    ///
    /// # Errors
    /// I/O.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        match self {
            Self::Folder(dir) => {
                let path = dir.join(name);
                match regular::read(&path, Links::Followed) {
                    Ok(found) if found == bytes => return Ok(()), // perhaps where nothing can be written
                    Err(error) if !durable::is_not_found(&error) => return Err(error),
                    _ => {}
                }
                fs_err::create_dir_all(dir)?;
                Ok(fs_err::write(path, bytes)?)
            }
            Self::Store(store, _) => Ok(store.put(&self.key(name), bytes)?),
        }
    }

    /// This place, for messages.
    pub(crate) fn place(&self) -> PathBuf {
        PathBuf::from(self.to_string())
    }

    /// Place of a file, for messages.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        match self {
            Self::Folder(dir) => dir.join(name),
            Self::Store(..) => PathBuf::from(self.join(name).to_string()),
        }
    }

    fn key(&self, name: &str) -> String {
        match self {
            Self::Store(_, prefix) if !prefix.is_empty() => format!("{prefix}/{name}"),
            _ => name.to_owned(),
        }
    }

    /// Makes what a writer needs before its first file.
    pub(crate) fn prepare(&self, folders: &[&str]) -> Result<(), Error> {
        match self {
            Self::Folder(dir) => durable::create_folders(dir, folders),
            Self::Store(..) => Ok(()),
        }
    }

    /// Where shards are written before they get their names, without what dead processes of this machine left there.
    pub(crate) fn scratch(&self) -> Result<Scratch, Error> {
        match self {
            Self::Folder(dir) => {
                durable::create_folders(dir, &[PRIVATE, "_softshard/tmp"])?;
                durable::remove_dead(dir)?;
                Ok(Scratch::within(dir))
            }
            Self::Store(..) => Scratch::temporary(),
        }
    }

    /// A small file; `None` if there is none.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        match self {
            Self::Folder(dir) => match regular::read(&dir.join(name), Links::Refused) {
                Err(error) if durable::is_not_found(&error) => Ok(None),
                bytes => bytes.map(Some),
            },
            Self::Store(store, _) => Ok(store.get(&self.key(name), regular::MAX_BYTES)?),
        }
    }

    /// Creates a small file; says `false` if it is there already, whatever it holds.
    pub(crate) fn create(&self, name: &str, bytes: &[u8]) -> Result<bool, Error> {
        match self {
            Self::Folder(dir) => durable::write_new(dir, &dir.join(name), bytes),
            Self::Store(store, _) => Ok(store.create(&self.key(name), bytes)?),
        }
    }

    /// Gives a small file this content.
    pub(crate) fn put(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        match self {
            Self::Folder(dir) => durable::put(dir, &dir.join(name), bytes),
            Self::Store(..) if self.read(name)?.is_some_and(|found| found == bytes) => Ok(()),
            Self::Store(store, _) => Ok(store.put(&self.key(name), bytes)?),
        }
    }

    /// Gives a written data file its name, which carries its hash.
    pub(crate) fn publish(&self, file: &WrittenFile, record: &ShardRecord) -> Result<(), Error> {
        let name = data(&record.file);
        match self {
            Self::Folder(dir) => {
                durable::link_data(&file.temp, &dir.join(name), record.bytes, &record.blake3)
            }
            Self::Store(store, _) => Ok(store.upload(&self.key(&name), file.temp.path())?),
        }
    }

    /// Whether a data file is there. Of a folder's the hash is computed; an object's name carries its hash and stores check
    /// what they are sent, so of these the size is compared.
    pub(crate) fn holds(&self, record: &ShardRecord) -> Result<bool, Error> {
        let name = data(&record.file);
        match self {
            Self::Folder(dir) => durable::holds(&dir.join(name), record.bytes, &record.blake3),
            Self::Store(store, _) => Ok(store.size(&self.key(&name))? == Some(record.bytes)),
        }
    }

    /// Removes a data file, if it is there.
    pub(crate) fn remove_data(&self, file: &str) -> Result<(), Error> {
        match self {
            Self::Folder(dir) => Ok(durable::remove_if_there(&dir.join(data(file)))?),
            Self::Store(store, _) => Ok(store.delete(&self.key(&data(file)))?),
        }
    }

    /// Names of the files in `folder`, of a store with their sizes.
    pub(crate) fn names(&self, folder: &str) -> Result<HashMap<String, Option<u64>>, Error> {
        match self {
            Self::Folder(dir) => {
                let entries = match fs_err::read_dir(dir.join(folder)) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(HashMap::new()),
                    entries => entries?,
                };
                entries.map(|entry| Ok((entry?.file_name().to_string_lossy().into_owned(), None))).collect()
            }
            Self::Store(store, _) => {
                let below = format!("{}/", self.key(folder));
                let named =
                    |(key, size): (String, u64)| Some((key.strip_prefix(&below)?.to_owned(), Some(size)));
                Ok(store.list(&self.key(folder))?.into_iter().filter_map(named).collect())
            }
        }
    }

    /// Calls `work` for each index below `count`, as many at a time as is good for this place.
    pub(crate) fn map<T: Send>(
        &self,
        count: usize,
        work: impl Fn(usize) -> Result<T, Error> + Sync,
    ) -> Result<Vec<T>, Error> {
        match self {
            Self::Folder(_) => parallel::map(count, work),
            Self::Store(..) => parallel::map_on(REQUESTS, count, work),
        }
    }

    /// Every file that `data/` lacks or should not hold, and every one of another size: nothing is read.
    pub(crate) fn data_problems(&self, shards: &[ShardRecord]) -> Result<Vec<Error>, Error> {
        let wrong = |shard: &ShardRecord, found: Option<u64>| {
            let found = found.map_or_else(|| "none".to_owned(), |bytes| format!("{bytes} bytes"));
            Error::bad(quoted(&self.path(&data(&shard.file))), format_args!("{} bytes", shard.bytes), found)
        };
        let mut problems = Vec::new();
        match self {
            Self::Folder(dir) => {
                problems = folder_problems(&dir.join("data"), shards)?;
                if problems.is_empty() {
                    // On a network file system each of these waits.
                    let sizes = parallel::map_on(REQUESTS, shards.len(), |index| {
                        Ok(fs_err::symlink_metadata(dir.join(data(&shards[index].file)))?.len())
                    })?;
                    let other = shards.iter().zip(sizes).filter(|(shard, bytes)| shard.bytes != *bytes);
                    problems.extend(other.map(|(shard, bytes)| wrong(shard, Some(bytes))));
                }
            }
            Self::Store(..) => {
                let mut found = self.names("data")?;
                for shard in shards {
                    let bytes = found.remove(&shard.file).flatten();
                    if bytes != Some(shard.bytes) {
                        problems.push(wrong(shard, bytes));
                    }
                }
                let place = quoted(&self.path("data"));
                let extra = |name| Error::bad(&place, "only the shards of the manifest", format!("`{name}`"));
                problems.extend(found.into_keys().map(extra));
            }
        }
        Ok(problems)
    }

    /// Removes the data files that no shard is.
    pub(crate) fn remove_leftovers(&self, shards: &[ShardRecord]) -> Result<(), Error> {
        let kept: std::collections::HashSet<&str> = shards.iter().map(|shard| shard.file.as_str()).collect();
        let is_left = |name: &str| is_data_file("labels", name) && !kept.contains(name);
        match self {
            Self::Folder(dir) => durable::remove_files(&dir.join("data"), is_left),
            Self::Store(..) => {
                let names = self.names("data")?;
                let left: Vec<&String> = names.keys().filter(|name| is_left(name)).collect();
                self.map(left.len(), |index| {
                    tracing::debug!(name = left[index], "removing a leftover");
                    self.remove_data(left[index])
                })?;
                Ok(())
            }
        }
    }

    /// Removes temporary files, also those of others: the dataset is finished.
    pub(crate) fn clear_temporary(&self) -> Result<(), Error> {
        match self {
            Self::Folder(dir) => durable::remove_files(&dir.join(PRIVATE).join("tmp"), |_| true),
            Self::Store(..) => Ok(()),
        }
    }

    /// What an end that was interrupted did not come to: the manifest stays, a card is there, temporary files are gone.
    pub(crate) fn settle(&self, card: &str) -> Result<(), Error> {
        if !self.is_there("README.md")? {
            self.put("README.md", card.as_bytes())?;
        }
        let Self::Folder(dir) = self else { return Ok(()) };
        durable::sync_parent(&dir.join("manifest.json"))?;
        match self.clear_temporary() {
            Err(error) if durable::is_not_found(&error) => Ok(()), // a copy without its private folder
            cleared => cleared,
        }
    }

    /// Bytes of the manifest; `None` if there is none.
    pub(crate) fn manifest(&self) -> Result<Option<(PathBuf, Vec<u8>)>, Error> {
        let path = self.path("manifest.json");
        if let Self::Folder(dir) = self {
            // What is there and no regular file is an error, and not followed.
            let is_there = fs_err::symlink_metadata(&path);
            return match is_there {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                _ => read_manifest(dir).map(Some),
            };
        }
        Ok(self.read("manifest.json")?.map(|bytes| (path, bytes)))
    }

    /// Refuses a place that is no dataset and holds what others put there: a dataset has a `README.md` and a `data` of its own.
    pub(crate) fn check_foreign(&self) -> Result<(), Error> {
        let Some(found) = self.foreign()? else { return Ok(()) };
        // Looked at last: another writer may have begun meanwhile, which names its plan before all else.
        if self.is_there("manifest.json")? || self.is_there(PLAN)? {
            return Ok(());
        }
        let expected = "an empty folder, or a dataset to go on with";
        let place = quoted(&self.place());
        Err(Error::bad(place, expected, format_args!("`{found}`")).hint("choose another output folder"))
    }

    pub(crate) fn is_there(&self, name: &str) -> Result<bool, Error> {
        match self {
            Self::Folder(dir) => Ok(dir.join(name).exists()),
            Self::Store(store, _) => Ok(store.size(&self.key(name))?.is_some()),
        }
    }

    /// The first name that no writer without a plan leaves; names with a dot in front are of no concern, nor is what a new
    /// file system has.
    fn foreign(&self) -> Result<Option<String>, Error> {
        let dir = match self {
            Self::Folder(dir) => dir,
            // A dataset that is there need not be listed.
            Self::Store(..) if self.is_there(PLAN)? => return Ok(None),
            Self::Store(store, prefix) => {
                let private = format!("{}/", self.key(PRIVATE));
                let keys = store.list(prefix)?.into_iter().map(|(key, _)| key);
                return Ok(keys.filter(|key| !key.starts_with(&private)).min());
            }
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

    /// Whether there is a plan; refuses another one than this.
    pub(crate) fn has_plan(&self, plan: &LabelPlan) -> Result<bool, Error> {
        let Some(found) = self.read(PLAN)? else { return Ok(false) };
        if found == json::to_bytes(plan) {
            return Ok(true);
        }
        let path = self.path(PLAN);
        let found: LabelPlan = json::parse(&path, &found, LabelPlan::FORMAT, LabelPlan::NEWEST_VERSION)?;
        Err(Error::OtherPlan { path, differences: plan.differences(&found) })
    }

    /// The manifest of a finished dataset, if there is one; refuses that of another plan: it need not have its plan beside it.
    pub(crate) fn finished(&self, plan: &LabelPlan) -> Result<Option<LabelsManifest>, Error> {
        let Some((path, bytes)) = self.manifest()? else { return Ok(None) };
        let hint = "remove the file if the dataset is to be finished again, or choose another output folder";
        let found: LabelsManifest =
            json::parse(&path, &bytes, LabelsManifest::FORMAT, LabelsManifest::NEWEST_VERSION)
                .map_err(|error| error.hint(hint))?;
        if found.plan != *plan {
            return Err(Error::OtherPlan { path, differences: plan.differences(&found.plan) });
        }
        let plan_blake3 = plan.blake3();
        if found.plan_blake3 != plan_blake3 {
            let place = format!("{} plan_blake3", quoted(&path));
            return Err(Error::bad(place, plan_blake3, found.plan_blake3).hint(hint));
        }
        Ok(Some(found))
    }
}

/// Names in a folder, in order, but for those with a dot in front.
fn names(dir: &Path) -> Result<Vec<String>, Error> {
    let entries = match fs_err::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<Result<Vec<_>, Error>>()?;
    names.retain(|name| !name.starts_with('.') && name != "lost+found");
    names.sort_unstable();
    Ok(names)
}

/// A data file's name in its dataset.
fn data(file: &str) -> String {
    format!("data/{file}")
}
