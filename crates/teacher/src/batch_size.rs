//! How many tokens go through the teacher at a time: as the recipe says, or what fits.

use std::fmt;

use anyhow::Result;
use burn::tensor::Device;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, Visitor},
};
use softshard_losses::HeadError;
use softshard_model::{Decoder, OutOfMemory};

/// Of the memory that is free once the teacher is loaded, the part that activations may take: the rest is for logits, labels and
/// what the allocator cannot use.
const SHARE_OF_FREE_MEMORY: f64 = 0.6;
/// More brings nothing on a GPU: matrix products are as fast as they get.
const MOST_ON_GPU: usize = 32_768;
/// Where a recipe says nothing. A core is as fast with small batches, and several cores share them more evenly.
const DEFAULT_ON_GPU: usize = 8192;
const DEFAULT_ON_CPU: usize = 1024;

/// Tokens of a batch, padding included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchTokens {
    /// At most so many; a longer sequence stands alone.
    AtMost(usize),
    /// What fits in the free memory, at most 32,768 on a GPU, and 1,024 on a CPU.
    Auto,
}

impl BatchTokens {
    /// The number that a recipe wants, for a teacher that was loaded and computes `workers` batches at a time.
    pub(crate) fn resolve(wanted: Option<Self>, decoder: &Decoder, workers: usize) -> usize {
        let is_cpu = *decoder.device() == Device::flex();
        let most = match wanted {
            Some(Self::AtMost(tokens)) => return tokens,
            None => return if is_cpu { DEFAULT_ON_CPU } else { DEFAULT_ON_GPU },
            Some(Self::Auto) if is_cpu => DEFAULT_ON_CPU,
            Some(Self::Auto) => MOST_ON_GPU,
        };
        let per_token = decoder.config().activation_bytes_per_token(decoder.activations());
        let Some(free) = softshard_model::free_bytes(decoder.device()) else {
            tracing::info!("batches of up to {most} tokens: the free memory of this device is not known");
            return most;
        };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded by `most`")]
        let fits = (free as f64 * SHARE_OF_FREE_MEMORY / per_token as f64 / workers as f64) as usize;
        let tokens = fits.clamp(1, most);
        tracing::info!(
            "batches of up to {tokens} tokens ({:.1} GB free, {:.0} kB of activations a token)",
            free as f64 / 1e9,
            per_token as f64 / 1e3
        );
        tokens
    }
}

impl Serialize for BatchTokens {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::AtMost(tokens) => tokens.serialize(to),
            Self::Auto => to.serialize_str("auto"),
        }
    }
}

impl<'de> Deserialize<'de> for BatchTokens {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Tokens;
        impl Visitor<'_> for Tokens {
            type Value = BatchTokens;

            fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
                to.write_str("a number of tokens of at least 1, or \"auto\"")
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<BatchTokens, E> {
                let tokens = usize::try_from(value).ok().filter(|tokens| *tokens > 0);
                let unexpected = de::Unexpected::Signed(value);
                tokens.map(BatchTokens::AtMost).ok_or_else(|| E::invalid_value(unexpected, &self))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<BatchTokens, E> {
                let tokens = usize::try_from(value).ok().filter(|tokens| *tokens > 0);
                let unexpected = de::Unexpected::Unsigned(value);
                tokens.map(BatchTokens::AtMost).ok_or_else(|| E::invalid_value(unexpected, &self))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<BatchTokens, E> {
                match value {
                    "auto" => Ok(BatchTokens::Auto),
                    _ => Err(E::invalid_value(de::Unexpected::Str(value), &self)),
                }
            }
        }
        from.deserialize_any(Tokens)
    }
}

impl JsonSchema for BatchTokens {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "BatchTokens".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Tokens of a batch, padding included; \"auto\": what fits in the free memory.",
            "anyOf": [{ "type": "integer", "minimum": 1 }, { "const": "auto" }],
        })
    }
}

/// What a device said when it failed: out of memory, if it is that.
pub(crate) fn device_failed(message: String) -> anyhow::Error {
    OutOfMemory::of_message(&message).map_or_else(|| HeadError::Device(message).into(), Into::into)
}

/// Does the work; that a device is out of memory is an error that [`in_halves`] knows, whether it came as an error or, from the
/// depths of a runtime, as a panic.
fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    softshard_model::guarded(work).unwrap_or_else(|error| Err(error.into()))
}

/// Results of a block of batches, in their order. Where the device has no memory for all of it, half of the batches is done after
/// the other, or of a single batch half of its members; `on_retry` sees what was too large.
///
/// # Errors
/// Those of `work`; a single member that is too large is an [`OutOfMemory`].
pub(crate) fn in_halves<T: Clone, R>(
    block: &[Vec<T>],
    work: &impl Fn(&[Vec<T>]) -> Result<Vec<R>>,
    on_retry: &impl Fn(&[Vec<T>]),
) -> Result<Vec<R>> {
    let result = guarded(|| work(block));
    if !result.as_ref().is_err_and(|error| error.is::<OutOfMemory>()) {
        return result;
    }
    let halves = match block {
        [batch] if batch.len() < 2 => return result,
        [batch] => {
            let (first, second) = batch.split_at(batch.len() / 2);
            [vec![first.to_vec()], vec![second.to_vec()]]
        }
        batches => {
            let (first, second) = batches.split_at(batches.len() / 2);
            [first.to_vec(), second.to_vec()]
        }
    };
    on_retry(block);
    let mut results = Vec::new();
    for half in halves {
        results.extend(in_halves(&half, work, on_retry)?);
    }
    Ok(results)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, Serialize)]
    struct Section {
        tokens: BatchTokens,
    }

    #[test]
    fn a_number_or_auto() {
        let read = |json: &str| serde_json::from_str::<Section>(json).map(|section| section.tokens);
        assert_eq!(read(r#"{"tokens": 17}"#).unwrap(), BatchTokens::AtMost(17));
        assert_eq!(read(r#"{"tokens": "auto"}"#).unwrap(), BatchTokens::Auto);
        for bad in ["0", "-3", "\"all\"", "1.5"] {
            let error = read(&format!(r#"{{"tokens": {bad}}}"#)).unwrap_err().to_string();
            assert!(error.contains("expected a number of tokens of at least 1, or \"auto\""), "{error}");
        }
        for tokens in [BatchTokens::AtMost(5), BatchTokens::Auto] {
            let json = serde_json::to_string(&Section { tokens }).unwrap();
            assert_eq!(read(&json).unwrap(), tokens);
        }
    }

    #[test]
    fn only_want_of_memory_is_caught() {
        let failed = guarded::<()>(|| panic!("out of device memory allocating 12 bytes\nbacktrace"));
        let error = failed.unwrap_err();
        assert!(error.is::<OutOfMemory>());
        assert_eq!(error.to_string(), "out of device memory allocating 12 bytes");
        let other = std::panic::catch_unwind(|| guarded::<()>(|| panic!("another bug")));
        assert!(other.is_err(), "a bug stays a panic");
        let error = guarded::<()>(|| anyhow::bail!("disk full")).unwrap_err();
        assert!(!error.is::<OutOfMemory>());
        assert!(guarded(|| Ok(3)).is_ok_and(|value| value == 3));
    }

    /// A device that has room for so many numbers and panics as Burn does, or fails as a read does.
    fn device(room: usize, block: &[Vec<u32>]) -> Result<Vec<u32>> {
        let numbers: Vec<u32> = block.iter().flatten().copied().collect();
        match numbers.len() {
            count if count <= room => Ok(numbers),
            count if count % 2 == 0 => panic!("out of device memory allocating {count} bytes"),
            _ => Err(OutOfMemory::of_message("CUDA_ERROR_OUT_OF_MEMORY: out of memory").unwrap().into()),
        }
    }

    #[test]
    fn what_does_not_fit_is_done_in_halves_and_in_order() {
        let block = [(0..7).collect(), (7..9).collect(), vec![9], (10..30).collect::<Vec<u32>>()];
        for room in [1, 2, 3, 8, 29, 30] {
            let retries = std::cell::Cell::new(0);
            let on_retry = |_: &[Vec<u32>]| retries.set(retries.get() + 1);
            let done = in_halves(&block, &|block| device(room, block), &on_retry).unwrap();
            assert_eq!(done, (0..30).collect::<Vec<u32>>());
            assert_eq!(retries.get() == 0, room >= 30);
        }
        let error = in_halves(&block, &|block| device(0, block), &|_| ()).unwrap_err();
        assert!(error.is::<OutOfMemory>(), "{error}");
    }
}
