//! What a label dataset asks of an object store.

use std::{fmt, io, path::Path};

/// A place of an object store where label datasets are written: another crate knows how to reach one.
///
/// Keys are relative to the place, with `/` between their parts. Calls block, may come from many threads at a time, and retry
/// by themselves what may pass. `Display` is the place as a person writes it: `s3://bucket/prefix`.
///
/// Nothing but [`create`](Store::create) is trusted to decide a race, and it is asked for small objects only.
pub trait Store: fmt::Debug + fmt::Display + Send + Sync {
    /// The whole object; `None` if there is none.
    ///
    /// # Errors
    /// The store fails, or the object has more than `at_most` bytes; the message names the object.
    fn get(&self, key: &str, at_most: u64) -> io::Result<Option<Vec<u8>>>;

    /// Size of an object in bytes; `None` if there is none.
    ///
    /// # Errors
    /// The store fails; the message names the object.
    fn size(&self, key: &str) -> io::Result<Option<u64>>;

    /// Makes an object unless it is there: `false` if it is, whatever it holds. Of many that call at a time one is told
    /// `true` at most: none may be, if an answer was lost on its way.
    ///
    /// # Errors
    /// The store fails; the message names the object.
    fn create(&self, key: &str, bytes: &[u8]) -> io::Result<bool>;

    /// Makes an object or replaces it.
    ///
    /// # Errors
    /// The store fails; the message names the object.
    fn put(&self, key: &str, bytes: &[u8]) -> io::Result<()>;

    /// Makes an object of any size from a file, or replaces it.
    ///
    /// # Errors
    /// The store fails, or the file cannot be read; the message names which.
    fn upload(&self, key: &str, file: &Path) -> io::Result<()>;

    /// Key and size of every object below `folder`, a key without a `/` at its end; empty for all of the place.
    ///
    /// # Errors
    /// The store fails; the message names the folder.
    fn list(&self, folder: &str) -> io::Result<Vec<(String, u64)>>;

    /// Removes an object; it is fine if it is not there.
    ///
    /// # Errors
    /// The store fails; the message names the object.
    fn delete(&self, key: &str) -> io::Result<()>;
}
