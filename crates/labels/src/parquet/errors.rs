//! Errors and panics of the Parquet crate, as ours.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use parquet::errors::ParquetError;

use crate::values::Error;

/// Turns a panic of a decoder into an error.
pub(crate) fn guarded<T>(decode: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Err(Error::bad("decoder", "readable data", format_args!("a panic: {text}")))
    })
}

/// The I/O error inside of an error of the Parquet writer, which names the path.
pub(crate) fn failed(error: ParquetError) -> Error {
    match error {
        ParquetError::External(inner) => match inner.downcast::<io::Error>() {
            Ok(error) => Error::Io(*error),
            Err(inner) => Error::Io(io::Error::other(inner)),
        },
        error => Error::Io(io::Error::other(error)),
    }
}
