//! Label datasets in S3, and in what speaks its protocol.

use std::fmt;
use std::io::{self, Read};
use std::path::Path as FilePath;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{TryStreamExt, stream::FuturesUnordered};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use object_store::{
    BackoffConfig, ClientConfigKey, Error, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode,
    PutOptions, PutPayload, RetryConfig,
};
use softshard_labels::Store;
use tokio::runtime::{Builder, Runtime};

use crate::again::again;
use crate::message::failed;
use crate::place::Place;
use crate::probe::{Conditional, probe};

/// A server that does not take a connection in this time is not there.
const CONNECT: Duration = Duration::from_secs(3);
/// The probe's requests are small: a server that lets one wait for longer is not there.
const PROBE_ANSWER: Duration = Duration::from_secs(5);
/// A part of a shard has to be through in this time.
const ANSWER: Duration = Duration::from_secs(120);
/// An outage that is shorter ends no run.
const OUTAGE: Duration = Duration::from_secs(180);
/// Objects up to this size are sent whole, larger ones in parts of it.
const PART: usize = 16 << 20;
/// S3 takes 10,000 parts.
const MOST_PARTS: usize = 9_000;
/// Parts that are sent at a time: bounds memory.
const PARTS_AT_A_TIME: usize = 4;
/// A conditional put that was refused although nothing is there is asked again as often, after a pause.
const CREATES: u32 = 6;
const CONFLICT: Duration = Duration::from_millis(200);

/// Who writes to a place at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writers {
    /// This process alone.
    One,
    /// Others too.
    Many,
}

/// A place in S3.
pub struct S3 {
    place: Place,
    endpoint: String,
    store: AmazonS3,
    runtime: Runtime,
    conditional: bool,
}

impl S3 {
    /// Opens `place` and writes to it: that it can be reached and written, and what it does when several create one object,
    /// is found out before any work. Takes seconds where nobody answers.
    ///
    /// # Errors
    /// No answer, wrong credentials, no such bucket; a store without conditional puts where `writers` are many.
    pub fn open(place: Place, writers: Writers) -> io::Result<Self> {
        // Another part of the program may have chosen one before: any is fine.
        drop(rustls::crypto::ring::default_provider().install_default());
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let builder = AmazonS3Builder::from_env()
            .with_bucket_name(&place.bucket)
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            .with_unsigned_payload(false) // the store checks what it is sent
            .with_disable_bulk_delete(true);
        let endpoint = match builder.get_config_value(&AmazonS3ConfigKey::Endpoint) {
            None => "the endpoint of AWS".to_owned(),
            Some(url) if url.starts_with("http://") || url.starts_with("https://") => without_password(&url),
            // The library panics at these.
            Some(other) => {
                let message = format!("`{place}`: expected a URL in AWS_ENDPOINT_URL, found `{other}`");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
            }
        };
        let probed =
            runtime.block_on(probe(&client(&builder, &place, PROBE_ANSWER, 1)?, &place, &endpoint))?;
        if let Conditional::Fails(seen) = &probed {
            let expected = format!(
                "`{place}`: expected a store that creates an object only once (If-None-Match), found that {seen}"
            );
            if writers == Writers::Many {
                let hint = "hint: only one process may write labels there: `softshard teacher-labels` without --task makes and finishes them; or write to a folder and copy it";
                return Err(io::Error::new(io::ErrorKind::Unsupported, format!("{expected}\n{hint}")));
            }
            tracing::warn!("{expected}: no other process may write there meanwhile");
        }
        let store = client(&builder, &place, ANSWER, 10)?;
        Ok(Self { place, endpoint, store, runtime, conditional: probed == Conditional::Works })
    }

    /// Waits for a request, which is asked again while that may help.
    fn wait<T, F: Future<Output = Result<T, Error>>>(&self, request: impl Fn() -> F) -> Result<T, Error> {
        self.runtime.block_on(again(OUTAGE, request))
    }

    fn failed(&self, key: &str, expected: &str, error: &Error) -> io::Error {
        failed(&format!("{self}/{key}"), &self.endpoint, expected, error)
    }

    /// Sends a file in parts. What fails in the store is done once more, as a whole: an upload cannot go on that the store has
    /// forgotten.
    fn upload_parts(&self, key: &str, path: &FilePath, bytes: u64) -> io::Result<()> {
        let upload = || self.runtime.block_on(self.upload_once(key, path, bytes));
        let uploaded = match upload() {
            Err(Failure::Store(error)) => {
                tracing::debug!(%error, key, "uploading again");
                upload()
            }
            uploaded => uploaded,
        };
        uploaded.map_err(|failure| match failure {
            Failure::File(error) => error,
            Failure::Store(error) => self.failed(key, "the store to take a shard", &error),
        })
    }

    async fn upload_once(&self, key: &str, file: &FilePath, bytes: u64) -> Result<(), Failure> {
        let path = self.place.path(key);
        let mut upload = self.store.put_multipart(&path).await?;
        let Err(failure) = send_parts(upload.as_mut(), file, bytes).await else { return Ok(()) };
        // The upload was complete and the answer was lost: the key carries the hash.
        if self.store.head(&path).await.is_ok_and(|found| found.size == bytes) {
            return Ok(());
        }
        if let Err(aborted) = upload.abort().await {
            tracing::warn!(%aborted, key, "parts of an upload may stay behind in the store");
        }
        Err(failure)
    }
}

/// Why a file was not uploaded.
enum Failure {
    File(io::Error),
    Store(Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::File(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

/// Sends all of a file, some parts at a time. After an error none is on its way.
async fn send_parts(upload: &mut dyn MultipartUpload, file: &FilePath, bytes: u64) -> Result<(), Failure> {
    let mut file = fs_err::File::open(file)?;
    let part = PART.max(usize::try_from(bytes).map_err(io::Error::other)?.div_ceil(MOST_PARTS));
    let mut sent = FuturesUnordered::new();
    loop {
        let piece = next_part(&mut file, part)?;
        if piece.is_empty() {
            break;
        }
        sent.push(upload.put_part(piece.into()));
        if sent.len() == PARTS_AT_A_TIME {
            sent.try_next().await?;
        }
    }
    while sent.try_next().await?.is_some() {}
    upload.complete().await?;
    Ok(())
}

/// A URL for messages.
fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}

/// The next bytes of a file, fewer only at its end.
fn next_part(file: &mut fs_err::File, part: usize) -> io::Result<Bytes> {
    let mut piece = Vec::with_capacity(part);
    let most = u64::try_from(part).expect("a size fits 64 bits");
    file.by_ref().take(most).read_to_end(&mut piece)?;
    Ok(piece.into())
}

/// A client of the store that gives up on a request after so many `retries`.
fn client(
    builder: &AmazonS3Builder,
    place: &Place,
    answer: Duration,
    retries: usize,
) -> io::Result<AmazonS3> {
    let backoff = BackoffConfig { max_backoff: Duration::from_secs(10), ..BackoffConfig::default() };
    let retry = RetryConfig { backoff, max_retries: retries, retry_timeout: OUTAGE };
    let seconds = |time: Duration| format!("{} seconds", time.as_secs());
    // The other options of the client stay as the environment says.
    let built = builder
        .clone()
        .with_config(AmazonS3ConfigKey::Client(ClientConfigKey::ConnectTimeout), seconds(CONNECT))
        .with_config(AmazonS3ConfigKey::Client(ClientConfigKey::Timeout), seconds(answer))
        .with_retry(retry)
        .build();
    built.map_err(|error| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("`{place}`: expected AWS_* variables that name a store: {error}"),
        )
    })
}

impl fmt::Display for S3 {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.place.fmt(to)
    }
}

impl fmt::Debug for S3 {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the client: it holds credentials.
        to.debug_struct("S3")
            .field("place", &self.place)
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

impl Store for S3 {
    fn get(&self, key: &str, at_most: u64) -> io::Result<Option<Vec<u8>>> {
        let path = self.place.path(key);
        let got = self.wait(|| async {
            let found = self.store.get(&path).await?;
            let size = found.meta.size;
            if size > at_most { Ok(Err(size)) } else { found.bytes().await.map(Ok) }
        });
        match got {
            Ok(Ok(bytes)) => Ok(Some(bytes.into())),
            Ok(Err(size)) => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("`{self}/{key}`: expected at most {at_most} bytes, found {size}"),
            )),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed(key, "an object to read", &error)),
        }
    }

    fn size(&self, key: &str) -> io::Result<Option<u64>> {
        let path = self.place.path(key);
        match self.wait(|| self.store.head(&path)) {
            Ok(found) => Ok(Some(found.size)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed(key, "an object to look at", &error)),
        }
    }

    fn create(&self, key: &str, bytes: &[u8]) -> io::Result<bool> {
        if !self.conditional {
            if self.size(key)?.is_some() {
                return Ok(false);
            }
            return self.put(key, bytes).map(|()| true);
        }
        let (path, payload) = (self.place.path(key), PutPayload::from(bytes.to_vec()));
        let put = || {
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            self.store.put_opts(&path, payload.clone(), options)
        };
        for _ in 1..CREATES {
            match self.wait(put) {
                Ok(_) => return Ok(true),
                // Of several at a time all may be refused for each other: somebody won if something is there.
                Err(Error::AlreadyExists { .. }) if self.size(key)?.is_some() => return Ok(false),
                Err(Error::AlreadyExists { .. }) => thread::sleep(CONFLICT),
                Err(error) => return Err(self.failed(key, "an object to be created", &error)),
            }
        }
        self.wait(put).map(|_| true).map_err(|error| self.failed(key, "an object to be created", &error))
    }

    fn put(&self, key: &str, bytes: &[u8]) -> io::Result<()> {
        let (path, payload) = (self.place.path(key), PutPayload::from(bytes.to_vec()));
        let put = self.wait(|| self.store.put(&path, payload.clone()));
        put.map(drop).map_err(|error| self.failed(key, "an object to be written", &error))
    }

    fn upload(&self, key: &str, path: &FilePath) -> io::Result<()> {
        let mut file = fs_err::File::open(path)?;
        let bytes = file.metadata()?.len();
        if bytes > u64::try_from(PART).expect("a size fits 64 bits") {
            return self.upload_parts(key, path, bytes);
        }
        let (path, payload) = (self.place.path(key), PutPayload::from(next_part(&mut file, PART)?));
        let put = self.wait(|| self.store.put(&path, payload.clone()));
        put.map(drop).map_err(|error| self.failed(key, "a shard to be written", &error))
    }

    fn list(&self, folder: &str) -> io::Result<Vec<(String, u64)>> {
        let prefix = self.place.path(folder);
        let prefix = (!prefix.as_ref().is_empty()).then_some(prefix);
        let found = self.wait(|| self.store.list(prefix.as_ref()).try_collect::<Vec<_>>());
        let found = found.map_err(|error| self.failed(folder, "objects to be listed", &error))?;
        let root = &self.place.prefix;
        let below = if root.is_empty() { String::new() } else { format!("{root}/") };
        // Some tools make an empty object for a folder: the library takes the `/` at its end away.
        let listed = found.into_iter().filter(|object| object.location.as_ref() != root);
        let named = |object: ObjectMeta| match object.location.as_ref().strip_prefix(&below) {
            Some(key) => Ok((key.to_owned(), object.size)),
            None => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("`{self}/{folder}`: expected objects below it, found `{}`", object.location),
            )),
        };
        listed.map(named).collect()
    }

    fn delete(&self, key: &str) -> io::Result<()> {
        let path = self.place.path(key);
        match self.wait(|| self.store.delete(&path)) {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed(key, "an object to be removed", &error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_of_an_endpoint_are_not_shown() {
        for (url, shown) in [
            ("https://user:pass@word@host:9000/a@b", "https://host:9000/a@b"),
            ("http://host", "http://host"),
            ("http://host/a@b", "http://host/a@b"),
        ] {
            assert_eq!(without_password(url), shown);
        }
    }
}
