//! Errors of a store as messages: place, expected, found, hint.

use std::error::Error as _;
use std::io;

use object_store::Error;

const HINT_ENDPOINT: &str =
    "hint: AWS_ENDPOINT_URL and AWS_REGION say where it is; AWS_ALLOW_HTTP=true allows one without TLS";
const HINT_CREDENTIALS: &str = "hint: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, where one is used, AWS_SESSION_TOKEN hold credentials";
const HINT_BUCKET: &str =
    "hint: the bucket must exist before; AWS_REGION and AWS_ENDPOINT_URL say where it is looked for";
const HINT_ACCESS: &str =
    "hint: the credentials need s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket there";

/// What a store did not do, at `place`.
pub(crate) fn failed(place: &str, endpoint: &str, expected: &str, error: &Error) -> io::Error {
    // What answered there, if anything did, is not the store.
    let answer = answer(error).filter(|_| !asks_for_credentials(error));
    let (kind, found, hint) = match (error, &answer) {
        (_, Some(answer)) if answer.code == "NoSuchBucket" => {
            (io::ErrorKind::NotFound, format!("no such bucket at {endpoint}"), HINT_BUCKET)
        }
        (Error::NotFound { .. }, _) => {
            (io::ErrorKind::NotFound, format!("nothing at {endpoint}"), HINT_BUCKET)
        }
        (Error::PermissionDenied { .. } | Error::Unauthenticated { .. }, Some(answer)) => {
            let hint = if answer.code == "AccessDenied" { HINT_ACCESS } else { HINT_CREDENTIALS };
            (io::ErrorKind::PermissionDenied, answer.text(), hint)
        }
        (Error::PermissionDenied { .. } | Error::Unauthenticated { .. }, None) => {
            (io::ErrorKind::PermissionDenied, format!("a refusal of {endpoint}"), HINT_CREDENTIALS)
        }
        (_, Some(answer)) => (io::ErrorKind::Other, answer.text(), ""),
        (_, None) if is_about_credentials(error) => (
            io::ErrorKind::PermissionDenied,
            format!("no credentials: {}", last_cause(error)),
            HINT_CREDENTIALS,
        ),
        (_, None) => {
            (io::ErrorKind::Other, format!("no answer of {endpoint}: {}", last_cause(error)), HINT_ENDPOINT)
        }
    };
    let line = if hint.is_empty() { "" } else { "\n" };
    io::Error::new(kind, format!("`{place}`: expected {expected}, found {found}{line}{hint}"))
}

/// What a store answered.
struct Answer {
    code: String,
    message: String,
}

impl Answer {
    fn text(&self) -> String {
        let Self { code, message } = self;
        if message.is_empty() { code.clone() } else { format!("{code}: {message}") }
    }
}

/// S3 answers in XML, with a code and a message; others say a status alone.
fn answer(error: &Error) -> Option<Answer> {
    let text = chain(error).find(|text| text.contains("Server returned"))?;
    let part = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        Some(rest.split_once(&format!("</{name}>"))?.0.to_owned())
    };
    let status = || {
        let (_, rest) = text.split_once("status code: ")?;
        Some(format!("status {}", rest.split(':').next()?.trim()))
    };
    let code = part("Code").or_else(status).unwrap_or_else(|| "an error".to_owned());
    Some(Answer { code, message: part("Message").unwrap_or_default() })
}

/// Whether the store was not asked at all.
fn is_about_credentials(error: &Error) -> bool {
    asks_for_credentials(error) || chain(error).any(|text| text.contains("credential"))
}

/// Whether a request went to where AWS's machines get their credentials.
fn asks_for_credentials(error: &Error) -> bool {
    let places = ["169.254.169.254", "169.254.170.2"];
    chain(error).any(|text| places.iter().any(|place| text.contains(place)))
}

fn last_cause(error: &Error) -> String {
    chain(error).next_back().unwrap_or_default()
}

/// The messages of an error and its causes.
fn chain(error: &Error) -> impl DoubleEndedIterator<Item = String> {
    let mut messages = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(error) = cause {
        messages.push(error.to_string());
        cause = error.source();
    }
    messages.into_iter()
}

/// Whether the same request may do better: nothing that it asks for is wrong.
pub(crate) fn may_pass(error: &Error) -> bool {
    let refused = |text: String| text.contains("status code: 4") || text.contains("NoSuchBucket");
    matches!(error, Error::Generic { .. }) && error.source().is_some() && !chain(error).any(refused)
}
