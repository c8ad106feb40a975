//! Object stores for label datasets.
//!
//! [`S3`] implements [`Store`](softshard_labels::Store) for `s3://bucket/prefix`. This is the only async crate of softshard, and
//! none of that is seen outside: every call blocks, and calls may come from many threads.
//!
//! Credentials, region and endpoint come from the usual variables: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
//! `AWS_SESSION_TOKEN`, `AWS_REGION`, `AWS_ENDPOINT_URL`, `AWS_ALLOW_HTTP=true` for an endpoint without TLS; or, as on AWS's own
//! machines, from the container, the web identity or the metadata service. Files below `~/.aws` are not read.

mod again;
mod message;
mod place;
mod probe;
mod s3;

pub use place::Place;
pub use s3::{S3, Writers};
