//! Keys and values of the tokens that were read before.
//!
//! Legend: B batch, S tokens seen so far, K key heads, E head width.

mod texts;

use burn::tensor::Tensor;

pub(crate) use texts::Texts;

/// Columns by which a full cache grows.
const GROWTH: usize = 64;

/// What one layer has read before.
#[expect(clippy::large_enum_variant, reason = "one a layer")]
#[derive(Debug, Clone)]
pub(crate) enum Cache {
    /// Of a batch whose texts lie side by side, padded.
    Columns(Columns),
    /// Of texts on the host, each of its own length: what is read next is one token of each.
    Texts(Texts),
}

/// Keys (turned) and values of one layer, `[B, capacity, K, 1, E]` each, of which the first `length` columns are in use.
#[derive(Debug, Clone)]
pub(crate) struct Columns {
    pub(crate) keys: Tensor<5>,
    pub(crate) values: Tensor<5>,
    pub(crate) length: usize,
}

impl Cache {
    pub(crate) fn into_columns(self) -> Option<Columns> {
        match self {
            Self::Columns(columns) => Some(columns),
            Self::Texts(_) => None,
        }
    }
}

impl Columns {
    /// Adds columns and returns views of all that are in use, `[B, S, K, 1, E]` each.
    pub(crate) fn append(
        slot: &mut Option<Cache>,
        key: Tensor<5>,
        value: Tensor<5>,
    ) -> (Tensor<5>, Tensor<5>) {
        let new = key.dims()[1];
        let Some(Cache::Columns(Self { keys, values, length })) = slot.take() else {
            *slot = Some(Cache::Columns(Self { keys: key.clone(), values: value.clone(), length: new }));
            return (key, value);
        };
        let used = length + new;
        // Nobody else holds the tensors here, so the columns are written in place.
        let put = |store: Tensor<5>, columns: Tensor<5>| {
            let [rows, capacity, heads, _, width] = store.dims();
            let store = if used <= capacity {
                store
            } else {
                let shape = [rows, used + GROWTH - capacity, heads, 1, width];
                let room = Tensor::zeros(shape, (&store.device(), store.dtype()));
                Tensor::cat(vec![store, room], 1)
            };
            store.slice_assign([0..rows, length..used, 0..heads, 0..1, 0..width], columns)
        };
        let (keys, values) = (put(keys, key), put(values, value));
        let views = (keys.clone().narrow(1, 0, used), values.clone().narrow(1, 0, used));
        *slot = Some(Cache::Columns(Self { keys, values, length: used }));
        views
    }
}
