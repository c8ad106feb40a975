//! Grouped-query attention.
//!
//! Legend: B batch, T tokens of this call, S tokens seen so far (T without a cache), K key heads, G query heads for each key
//! head, H = K·G, E head width, D model width, N = B·T rows.

use burn::tensor::{DType, Device, Int, Tensor, TensorData, activation};
use softshard_products::Visible;

use crate::cache::{Cache, Columns};
use crate::config::{DecoderConfig, FusedQkv};
use crate::fused;
use crate::layout::{Layout, MASKED, Padding, Tile};
use crate::linear::{Dropout, DropoutSeed, Linear};
use crate::norm::Norm;
use crate::precision::cast;
use crate::rope::{Angles, Rope};

#[derive(Debug, Clone)]
pub(crate) struct Attention {
    pub(crate) projections: Projections,
    /// Of queries and of keys, per head.
    pub(crate) head_norms: Option<[Norm; 2]>,
    pub(crate) output: Linear,
    pub(crate) heads: Heads,
    /// How many tokens each sees, itself included; absent: all before it.
    pub(crate) window: Option<usize>,
}

/// What makes queries, keys and values.
#[expect(clippy::large_enum_variant, reason = "one a layer")]
#[derive(Debug, Clone)]
pub(crate) enum Projections {
    Separate { query: Linear, key: Linear, value: Linear },
    Fused { all: Linear, order: FusedQkv },
}

/// How the width of a token is cut into heads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    /// K
    pub(crate) keys: usize,
    /// G
    pub(crate) groups: usize,
    /// E
    pub(crate) width: usize,
}

/// What the layers of one forward pass share.
pub(crate) struct Context<'a> {
    /// B and T, of the rows as they are outside of attention.
    pub(crate) shape: [usize; 2],
    /// Where attention pads.
    pub(crate) padding: Option<Padding>,
    /// Absent where positions are learned.
    pub(crate) rope: Option<(&'a Rope, Angles)>,
    /// One for each window that some layer has.
    pub(crate) views: Vec<View<'a>>,
    pub(crate) dropout_seed: Option<DropoutSeed>,
    /// Whether something learns: the fused operations are then used, with a graph and without one to the same bits.
    pub(crate) learning: bool,
    /// Whether a gate is one operation: where something learns, and on the host.
    pub(crate) fuses: bool,
}

impl Context<'_> {
    /// What layers with this window see.
    fn view(&self, window: Option<usize>) -> &View<'_> {
        self.views
            .iter()
            .find(|view| view.windows.contains(&window))
            .expect("there is a view for the window of each layer")
    }

    /// B and T inside attention.
    fn attended_shape(&self) -> [usize; 2] {
        self.padding.as_ref().map_or(self.shape, |padding| padding.shape)
    }
}

/// What tokens see in layers with these windows, which for the texts of a batch may be the same.
pub(crate) struct View<'a> {
    pub(crate) windows: Vec<Option<usize>>,
    pub(crate) seen: Seen<'a>,
}

/// How attention is told what tokens see.
pub(crate) enum Seen<'a> {
    /// In one operation, which skips what nobody sees (`softshard_products::attend`).
    Whole(Visible),
    /// In tiles of queries, with masks.
    Tiles { tiles: Vec<Tile>, masks: Masks<'a> },
}

/// What the tiles do not see.
pub(crate) enum Masks<'a> {
    /// Made once for all layers with the window, in the order of the tiles.
    Kept(Vec<Option<Tensor<5>>>),
    /// Made for each tile of each layer, where all of them would take too much memory.
    Made { layout: &'a Layout, window: Option<usize>, device: &'a Device },
}

impl Masks<'_> {
    fn of(&self, index: usize, tile: &Tile) -> Option<Tensor<5>> {
        match self {
            Self::Kept(masks) => masks[index].clone(),
            Self::Made { layout, window, device } => layout.mask(tile, *window, device),
        }
    }
}

/// Queries `[B, T, H, E]`, scaled, keys `[B, T, K, 1, E]` and values `[B, T, K, 1, E]`, turned by their
/// positions.
struct Projected {
    query: Tensor<4>,
    key: Tensor<5>,
    value: Tensor<5>,
}

impl Heads {
    pub(crate) fn of(config: &DecoderConfig) -> Self {
        let keys = config.num_key_value_heads;
        Self { keys, groups: config.num_attention_heads / keys, width: config.head_dim }
    }
}

impl Attention {
    /// With a cache, its keys and values come before those of `x`, and it then holds both. Scores are in memory for one
    /// tile of queries at a time, also in the backward pass, which computes them again.
    ///
    /// # Shapes
    /// `x` and the result: `[N, D]`.
    pub(crate) fn forward(
        &self,
        x: Tensor<2>,
        context: &Context<'_>,
        dropout: &mut Dropout,
        cache: Option<&mut Option<Cache>>,
    ) -> Tensor<2> {
        let Projected { query, mut key, mut value } = self.project(x, context, dropout);
        let Heads { keys, groups, width } = self.heads;
        let [batch, tokens] = context.attended_shape();
        match cache {
            Some(Some(Cache::Texts(texts))) => {
                let mixed = texts.attend(query, [key, value], self.window);
                return self.output.forward(mixed.reshape([batch, keys * groups * width]), dropout);
            }
            Some(slot) => (key, value) = Columns::append(slot, key, value),
            None => {}
        }
        let view = context.view(self.window);
        let mixed = match &view.seen {
            Seen::Whole(visible) => {
                let dtype = value.dtype();
                let [key, value] = [key, value].map(|x| cast(x, DType::F32));
                cast(softshard_products::attend(cast(query, DType::F32), key, value, visible.clone()), dtype)
            }
            Seen::Tiles { tiles, masks } => {
                self.attend_by_tile(self.by_group(query), [key, value], (tiles, masks), context.learning)
            }
        };
        let mut mixed = mixed.reshape([batch * tokens, keys * groups * width]);
        if let Some(padding) = &context.padding {
            mixed = mixed.select(0, padding.gather.clone());
        }
        self.output.forward(mixed, dropout)
    }

    /// # Shapes
    /// `query`: `[B, T, H, E]`; the result: `[B, K, G, T, E]`.
    fn by_group(&self, query: Tensor<4>) -> Tensor<5> {
        let Heads { keys, groups, width } = self.heads;
        let [batch, tokens, ..] = query.dims();
        query.reshape([batch, tokens, keys, groups, width]).permute([0, 2, 3, 1, 4])
    }

    /// # Shapes
    /// `query`: `[B, K, G, T, E]`; key and value: `[B, S, K, 1, E]`; the result: `[B, T, H, E]`.
    fn attend_by_tile(
        &self,
        query: Tensor<5>,
        [key, value]: [Tensor<5>; 2],
        (tiles, masks): (&[Tile], &Masks<'_>),
        learning: bool,
    ) -> Tensor<4> {
        let Heads { keys, groups, width } = self.heads;
        let [batch, _, _, tokens, _] = query.dims();
        // Views: the products read them in place, and the group axis is broadcast, not repeated.
        let (key, value) = (key.permute([0, 2, 3, 4, 1]), value.permute([0, 2, 3, 1, 4]));
        let tile = |(index, tile): (usize, &Tile)| {
            let query = narrow(&query, 3, &tile.queries);
            let (key, value) = (narrow(&key, 4, &tile.keys), narrow(&value, 3, &tile.keys));
            attend(query, key, value, masks.of(index, tile), learning)
        };
        let mixed = match tiles {
            [alone] => tile((0, alone)),
            tiles => Tensor::cat(tiles.iter().enumerate().map(tile).collect(), 3),
        };
        mixed.permute([0, 3, 1, 2, 4]).reshape([batch, tokens, keys * groups, width])
    }

    /// Probabilities that the tokens at `rows` of one text give to the tokens before them and to themselves.
    ///
    /// # Shapes
    /// `x` `[T, D]` of a batch of one; `rows` R indices in `0..T`; the result: `[H, R, T]`, f32.
    pub(crate) fn probabilities(
        &self,
        x: Tensor<2>,
        rows: &Tensor<1, Int>,
        mask: &Tensor<5>,
        context: &Context<'_>,
    ) -> Tensor<3> {
        let Projected { query, key, .. } = self.project(x, context, &mut Dropout::new(None, 0));
        let query = self.by_group(query).select(3, rows.clone());
        let scores = cast(query.matmul(key.permute([0, 2, 3, 4, 1])), DType::F32) + mask.clone();
        let [_, keys, groups, rows, tokens] = scores.dims();
        activation::softmax(scores, 4).reshape([keys * groups, rows, tokens])
    }

    /// Probabilities that the tokens of one text give to what was read before it, to the tokens before them and to themselves.
    ///
    /// # Shapes
    /// `x` `[T, D]` of a batch of one behind S columns; the result: `[H, T, S+T]`, f32.
    pub(crate) fn probabilities_behind(
        &self,
        x: Tensor<2>,
        before: &Columns,
        context: &Context<'_>,
    ) -> Tensor<3> {
        let [tokens, _] = x.dims();
        let seen = before.length;
        let window = self.window.unwrap_or(usize::MAX);
        let visible = |row: usize| {
            let seen = (seen + row + 1).saturating_sub(window)..=seen + row;
            move |key: usize| if seen.contains(&key) { 0.0 } else { MASKED }
        };
        let mask: Vec<f32> = (0..tokens).flat_map(|row| (0..seen + tokens).map(visible(row))).collect();
        let mask = Tensor::from_data(TensorData::new(mask, [1, 1, 1, tokens, seen + tokens]), &x.device());
        let Projected { query, key, .. } = self.project(x, context, &mut Dropout::new(None, 0));
        let keys = Tensor::cat(vec![before.keys.clone().narrow(1, 0, seen), key], 1);
        let query = self.by_group(query);
        let scores = cast(query.matmul(keys.permute([0, 2, 3, 4, 1])), DType::F32) + mask;
        let [_, heads, groups, ..] = scores.dims();
        activation::softmax(scores, 4).reshape([heads * groups, tokens, seen + tokens])
    }

    fn project(&self, x: Tensor<2>, context: &Context<'_>, dropout: &mut Dropout) -> Projected {
        let Heads { keys, groups, width } = self.heads;
        let [batch, tokens] = context.shape;
        let [mut query, mut key, value] = match &self.projections {
            Projections::Separate { query, key, value } => {
                let query = query.forward(x.clone(), dropout).reshape([batch, tokens, keys * groups, width]);
                let key = key.forward(x.clone(), dropout).reshape([batch, tokens, keys, width]);
                [query, key, value.forward(x, dropout).reshape([batch, tokens, keys, width])]
            }
            Projections::Fused { all, order } => {
                let all = all.forward(x, dropout);
                let (axis, shape) = match order {
                    FusedQkv::PerHead => (3, [batch, tokens, keys, 3, width]),
                    FusedQkv::Thirds => (2, [batch, tokens, 3, keys, width]),
                };
                let all = all.reshape(shape);
                [0, 1, 2].map(|part| all.clone().narrow(axis, part, 1).squeeze_dim::<4>(axis))
            }
        };
        if let Some([of_queries, of_keys]) = &self.head_norms {
            query = per_head(of_queries, query);
            key = per_head(of_keys, key);
        }
        // Scaling the queries is cheaper than scaling the scores.
        let scale = (width as f64).powf(-0.5);
        match &context.rope {
            Some((rope, angles)) => {
                query = rope.turn(query, angles, scale);
                key = rope.turn(key, angles, 1.0);
            }
            None => query = query * scale,
        }
        let [batch, tokens] = context.attended_shape();
        let spread = |x: Tensor<4>| match &context.padding {
            None => x,
            Some(padding) => {
                let [_, _, heads, width] = x.dims();
                let rows = x.flatten::<3>(0, 1).flatten::<2>(1, 2).select(0, padding.spread.clone());
                rows.reshape([batch, tokens, heads, width])
            }
        };
        let [query, key, value] = [query, key, value].map(spread);
        Projected {
            query,
            // In the cache with the group axis: a view of part of it could not be reshaped without a copy.
            key: key.reshape([batch, tokens, keys, 1, width]),
            value: value.reshape([batch, tokens, keys, 1, width]),
        }
    }
}

/// # Shapes
/// `x` and the result: `[B, T, heads, E]`.
fn per_head(norm: &Norm, x: Tensor<4>) -> Tensor<4> {
    let [batch, tokens, heads, width] = x.dims();
    norm.forward(x.reshape([batch * tokens * heads, width])).reshape([batch, tokens, heads, width])
}

fn narrow(x: &Tensor<5>, axis: usize, range: &std::ops::Range<usize>) -> Tensor<5> {
    if range.len() == x.dims()[axis] { x.clone() } else { x.clone().narrow(axis, range.start, range.len()) }
}

/// `softmax(query · key + mask) · value`, the softmax in f32.
///
/// # Shapes
/// `query`: `[B, K, G, T, E]`; `key`: `[B, K, 1, E, S]`; `value`: `[B, K, 1, S, E]`; `mask`: `[B or 1, 1, 1, T, S]`; the
/// result: `[B, K, G, T, E]`.
fn attend(
    query: Tensor<5>,
    key: Tensor<5>,
    value: Tensor<5>,
    mask: Option<Tensor<5>>,
    learning: bool,
) -> Tensor<5> {
    if learning {
        let mask = mask.unwrap_or_else(|| fused::nothing_hidden(&query));
        return fused::attend(query, key, value, mask);
    }
    let dtype = query.dtype();
    let mut scores = cast(query.matmul(key), DType::F32);
    if let Some(mask) = mask {
        scores = scores + mask;
    }
    cast(activation::softmax(scores, 4), dtype).matmul(value)
}
