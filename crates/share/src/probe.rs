//! What a store is trusted with is tried before any work.

use std::io;
use std::time::Duration;

use futures_util::future::join_all;
use object_store::{
    Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, aws::AmazonS3, path::Path,
};

use crate::again::again;
use crate::message::failed;
use crate::place::Place;

/// Of so many that create an object at a time one may be told that it did.
const RACERS: usize = 8;
/// The second race runs on connections that are open.
const RACES: usize = 2;

/// A store that took longer than this to fail is not asked again.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a store does with a put that must not replace anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Conditional {
    /// The first wins, and the others are told.
    Works,
    /// What was seen instead.
    Fails(String),
}

/// Creates objects twice, one after the other and at a time, and removes them.
pub(crate) async fn probe(store: &AmazonS3, place: &Place, endpoint: &str) -> io::Result<Conditional> {
    let nonce = format!("{}-{:016x}", std::process::id(), chance());
    let keys: Vec<Path> =
        (0..=RACES).map(|index| place.path(&format!("_softshard/probe-{nonce}-{index}"))).collect();
    let tried = attempts(store, &keys).await;
    let tried = match tried {
        Err(error) if is_refusal(&error) => plainly(store, &keys[0], &error).await,
        tried => tried,
    };
    let refused = |expected, error: &Error| failed(&place.to_string(), endpoint, expected, error);
    // After an error nobody may be there to ask; what may stay behind is below a folder that no dataset looks at.
    let seen = tried.map_err(|error| refused("a place to write to", &error))?;
    for key in &keys {
        match again(PATIENCE, || store.delete(key)).await {
            Ok(()) | Err(Error::NotFound { .. }) => {}
            Err(error) => return Err(refused("a place where objects may be removed", &error)),
        }
    }
    Ok(seen)
}

async fn attempts(store: &AmazonS3, keys: &[Path]) -> Result<Conditional, Error> {
    // The first may be told that it lost to itself, if an answer was lost.
    create(store, &keys[0]).await?;
    if create(store, &keys[0]).await? {
        return Ok(Conditional::Fails("an object was created twice".to_owned()));
    }
    for key in &keys[1..] {
        let racers = join_all((0..RACERS).map(|_| create(store, key))).await;
        let won = racers.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().filter(|won| *won).count();
        if won > 1 {
            return Ok(Conditional::Fails(format!("{won} of {RACERS} created the same object")));
        }
    }
    Ok(Conditional::Works)
}

/// Whether this put made the object.
async fn create(store: &AmazonS3, key: &Path) -> Result<bool, Error> {
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    let put = || store.put_opts(key, PutPayload::from_static(b"probe"), options.clone());
    match again(PATIENCE, put).await {
        Ok(_) => Ok(true),
        Err(Error::AlreadyExists { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A store that knows no such put says so in one of these ways.
fn is_refusal(error: &Error) -> bool {
    let text = format!("{error} {error:?}");
    matches!(error, Error::NotImplemented { .. } | Error::NotSupported { .. })
        || ["NotImplemented", "status: 501", "status: 400", "status: 405"]
            .iter()
            .any(|part| text.contains(part))
}

/// Whether the store takes a put without a condition.
async fn plainly(store: &AmazonS3, key: &Path, refused: &Error) -> Result<Conditional, Error> {
    again(PATIENCE, || store.put(key, PutPayload::from_static(b"probe"))).await?;
    tracing::debug!(%refused, "no conditional put");
    Ok(Conditional::Fails("it was refused".to_owned()))
}

fn chance() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}
