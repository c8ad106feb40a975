//! Grouped-query attention.
//!
//! Legend: B batch, T tokens of this call, S tokens seen so far (T without a cache), K key heads, G query heads for each key
//! head, E head width, D model width, N = B·T rows.

use burn::tensor::{Tensor, activation};

use crate::config::DecoderConfig;
use crate::linear::{Dropout, Linear};
use crate::rope::{Angles, Rope};

/// Added to a score that must not count. Every row of a mask leaves at least one score, so none becomes NaN; a finite
/// value would take the slow path of `expf` for results that underflow.
pub(crate) const MASKED: f32 = f32::NEG_INFINITY;

#[derive(Debug, Clone)]
pub(crate) struct Attention {
    pub(crate) query: Linear,
    pub(crate) key: Linear,
    pub(crate) value: Linear,
    pub(crate) output: Linear,
    key_heads: usize,
    groups: usize,
    head_width: usize,
}

/// What all layers of one forward pass share.
pub(crate) struct Context<'a> {
    pub(crate) rope: &'a Rope,
    pub(crate) angles: Angles,
    /// Added to the scores: `[B or 1, 1, 1, T, S]`; absent if every token sees every other.
    pub(crate) mask: Option<Tensor<5>>,
    pub(crate) dropout: Dropout,
}

/// Columns by which a full cache grows.
const CACHE_GROWTH: usize = 64;

/// Keys (turned) and values of one layer, `[B, capacity, K, 1, E]` each, of which the first `length` columns are in use.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    pub(crate) keys: Tensor<5>,
    pub(crate) values: Tensor<5>,
    pub(crate) length: usize,
}

impl Cache {
    /// Adds columns and returns views of all that are in use, `[B, S, K, 1, E]` each.
    fn append(slot: &mut Option<Self>, key: Tensor<5>, value: Tensor<5>) -> (Tensor<5>, Tensor<5>) {
        let new = key.dims()[1];
        let Some(Self { keys, values, length }) = slot.take() else {
            *slot = Some(Self { keys: key.clone(), values: value.clone(), length: new });
            return (key, value);
        };
        let used = length + new;
        // Nobody else holds the tensors here, so the columns are written in place.
        let put = |store: Tensor<5>, columns: Tensor<5>| {
            let [rows, capacity, heads, _, width] = store.dims();
            let store = if used <= capacity {
                store
            } else {
                let room =
                    Tensor::zeros([rows, used + CACHE_GROWTH - capacity, heads, 1, width], &store.device());
                Tensor::cat(vec![store, room], 1)
            };
            store.slice_assign([0..rows, length..used, 0..heads, 0..1, 0..width], columns)
        };
        let (keys, values) = (put(keys, key), put(values, value));
        let views = (keys.clone().narrow(1, 0, used), values.clone().narrow(1, 0, used));
        *slot = Some(Self { keys, values, length: used });
        views
    }
}

impl Attention {
    pub(crate) fn new(
        config: &DecoderConfig,
        query: Linear,
        key: Linear,
        value: Linear,
        output: Linear,
    ) -> Self {
        let key_heads = config.num_key_value_heads;
        let groups = config.num_attention_heads / key_heads;
        Self { query, key, value, output, key_heads, groups, head_width: config.head_dim }
    }

    /// With a cache, its keys and values come before those of `x`, and it then holds both.
    ///
    /// # Shapes
    /// `x` and the result: `[N, D]`.
    pub(crate) fn forward(
        &self,
        x: Tensor<2>,
        [batch, tokens]: [usize; 2],
        context: &mut Context<'_>,
        cache: Option<&mut Option<Cache>>,
    ) -> Tensor<2> {
        let (key_heads, groups, width) = (self.key_heads, self.groups, self.head_width);
        let query = self.query.forward(x.clone(), &mut context.dropout);
        let key = self.key.forward(x.clone(), &mut context.dropout);
        let value = self.value.forward(x, &mut context.dropout);
        // Scaling the queries is cheaper than scaling the scores.
        let query = query * (width as f64).powf(-0.5);
        let query =
            context.rope.turn(query.reshape([batch, tokens, key_heads * groups, width]), &context.angles);
        let key = context.rope.turn(key.reshape([batch, tokens, key_heads, width]), &context.angles);
        // In the cache with the group axis: a view of part of it could not be reshaped without a copy.
        let mut key = key.reshape([batch, tokens, key_heads, 1, width]);
        let mut value = value.reshape([batch, tokens, key_heads, 1, width]);
        if let Some(slot) = cache {
            (key, value) = Cache::append(slot, key, value);
        }
        // Views: the products read them in place, and the group axis is broadcast, not repeated.
        let query = query.reshape([batch, tokens, key_heads, groups, width]).permute([0, 2, 3, 1, 4]);
        let key = key.permute([0, 2, 3, 4, 1]);
        let value = value.permute([0, 2, 3, 1, 4]);
        let mut scores = query.matmul(key);
        if let Some(mask) = &context.mask {
            scores = scores + mask.clone();
        }
        let mixed = softmax_product(scores, value);
        let mixed = mixed.permute([0, 3, 1, 2, 4]).reshape([batch * tokens, key_heads * groups * width]);
        self.output.forward(mixed, &mut context.dropout)
    }
}

/// `softmax(scores) · value`.
///
/// Where gradients are needed, the sums that divide the exponentials come out of the same product, from a column of ones:
/// the quotient is taken on `[T, E]` instead of `[T, S]`, and the gradient passes over the scores once. Elsewhere the
/// backend's own softmax is faster.
///
/// # Shapes
/// `scores`: `[B, K, G, T, S]`; `value`: `[B, K, 1, S, E]`; the result: `[B, K, G, T, E]`.
fn softmax_product(scores: Tensor<5>, value: Tensor<5>) -> Tensor<5> {
    if !scores.is_tracked() {
        return activation::softmax(scores, 4).matmul(value);
    }
    let width = value.dims()[4];
    let [batch, heads, _, seen, _] = value.dims();
    let ones = Tensor::ones([batch, heads, 1, seen, 1], &value.device().without_autodiff());
    let largest = scores.clone().without_autodiff().max_dim(4);
    let sums = (scores - largest).exp().matmul(Tensor::cat(vec![value, ones], 4));
    sums.clone().narrow(4, 0, width) / sums.narrow(4, width, 1)
}
