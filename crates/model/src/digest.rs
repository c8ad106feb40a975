//! Digests that identify a teacher: of the files as they are, not of the numbers in them.

use std::path::{Path, PathBuf};

use crate::peft::{ADAPTER_CONFIG, ADAPTER_WEIGHTS};
use crate::weights::{INDEX, weight_files};
use crate::{Error, config};

/// BLAKE3 of the weights of a model folder: of the names and digests of the files that [`crate::Decoder::load`] reads.
///
/// # Errors
/// The folder has no weights, or a file cannot be read.
pub fn weights_blake3(folder: &Path) -> Result<String, Error> {
    let mut files = weight_files(folder)?;
    if files.len() > 1 || !folder.join(crate::weights::SINGLE).exists() {
        files.push(folder.join(INDEX));
    }
    named_digests(&files)
}

/// BLAKE3 of a model folder's `config.json`.
///
/// # Errors
/// The file cannot be read.
pub fn config_blake3(folder: &Path) -> Result<String, Error> {
    Ok(digest(&folder.join(config::CONFIG))?.to_hex().to_string())
}

/// BLAKE3 of an adapter folder: of its configuration and its weights.
///
/// # Errors
/// A file cannot be read.
pub fn adapter_blake3(folder: &Path) -> Result<String, Error> {
    named_digests(&[folder.join(ADAPTER_CONFIG), folder.join(ADAPTER_WEIGHTS)])
}

fn named_digests(files: &[PathBuf]) -> Result<String, Error> {
    let mut whole = blake3::Hasher::new();
    for file in files {
        whole.update(file.file_name().unwrap_or_default().as_encoded_bytes());
        whole.update(&[0]);
        whole.update(digest(file)?.as_bytes());
    }
    Ok(whole.finalize().to_hex().to_string())
}

fn digest(file: &Path) -> Result<blake3::Hash, Error> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(crate::files::open_file(file)?)?;
    Ok(hasher.finalize())
}
