//! What may pass is asked again.
//!
//! The library does so where it knows that a request never reached the store. Every request here may be asked again anyway: to
//! create conditionally twice, too, does no harm.

use std::time::{Duration, Instant};

use object_store::Error;

use crate::message::may_pass;

const ATTEMPTS: u32 = 6;

/// Repeats a request that fails as it may pass, within `patience`: what began before is waited for.
pub(crate) async fn again<T, F: Future<Output = Result<T, Error>>>(
    patience: Duration,
    request: impl Fn() -> F,
) -> Result<T, Error> {
    let (began, mut pause) = (Instant::now(), Duration::from_millis(50));
    for _ in 1..ATTEMPTS {
        match request().await {
            Err(error) if began.elapsed() < patience && may_pass(&error) => {
                tracing::debug!(%error, "asking again");
            }
            done => return done,
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
    request().await
}
