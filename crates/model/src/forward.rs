//! From token ids to the hidden states that meet the head.
//!
//! Legend: B batch, T tokens, D width of the states that meet the head, N = B·T rows.

use burn::tensor::{Int, Tensor, TensorData};

use crate::attention::{Context, Masks, Seen, View};
use crate::cache::Cache;
use crate::config::Positions;
use crate::layout::{Layout, MASKED, Tile};
use crate::linear::Dropout;
use crate::precision::cast;
use crate::{Decoder, Error, Trainable};

/// Queries of a text that are worth attention in one operation; an answer's next token is not.
const LEAST_QUERIES: usize = 16;
/// Numbers in the masks that are kept for all layers: 32 MB.
const MOST_KEPT: usize = 1 << 23;

impl Decoder {
    /// Hidden states after the last layer (and its normalisation) of texts of one length. Causal: what follows a token does
    /// not change its row, so padding on the right is harmless, unless rotary angles go by the length of a text.
    ///
    /// # Shapes
    /// `ids`: `[B, T]`, each in `0..V`; the result: `[B, T, D]`.
    ///
    /// # Errors
    /// Streamed weights cannot be read.
    pub fn hidden(&self, ids: Tensor<2, Int>) -> Result<Tensor<3>, Error> {
        let [_, tokens] = ids.dims();
        self.hidden_in(ids, &Layout::causal(tokens))
    }

    /// [`hidden`](Self::hidden) of rows that are padded on the left or hold several texts.
    ///
    /// # Shapes
    /// `ids`: `[B, T]`; the layout of B rows of T columns; the result: `[B, T, D]`.
    ///
    /// # Errors
    /// Streamed weights cannot be read.
    pub fn hidden_in(&self, ids: Tensor<2, Int>, layout: &Layout) -> Result<Tensor<3>, Error> {
        let ids = ids.without_autodiff();
        let [batch, tokens] = ids.dims();
        let hidden = self.forward(ids, layout, None)?;
        Ok(hidden.reshape([batch, tokens, self.config.embedding_size]))
    }

    /// Attention probabilities of the tokens at `rows` of one text, layer by layer: what each gives to itself and to the
    /// tokens before it.
    ///
    /// # Shapes
    /// `ids`: T tokens; `rows`: R indices in `0..T`; each result: `[H, R, T]`, f32.
    ///
    /// # Errors
    /// Streamed weights cannot be read.
    ///
    /// # Panics
    /// A row is not in `0..T`.
    pub fn attention(&self, ids: &[i32], rows: &[usize]) -> Result<Vec<Tensor<3>>, Error> {
        let tokens = ids.len();
        let layout = Layout::causal(tokens);
        let context = self.context([1, tokens], &layout);
        assert!(rows.iter().all(|&row| row < tokens), "rows {rows:?} of a text of {tokens} tokens");
        let mask = |window: Option<usize>| {
            let window = window.unwrap_or(tokens);
            let visible = |&row: &usize| {
                let seen = (row + 1).saturating_sub(window)..=row;
                (0..tokens).map(move |key| if seen.contains(&key) { 0.0 } else { MASKED })
            };
            let mask: Vec<f32> = rows.iter().flat_map(visible).collect();
            Tensor::from_data(TensorData::new(mask, [1, 1, 1, rows.len(), tokens]), &self.device)
        };
        let indices: Vec<i32> =
            rows.iter().map(|&row| i32::try_from(row).expect("a text has fewer than 2^31 tokens")).collect();
        let indices = Tensor::from_data(TensorData::new(indices, [rows.len()]), &self.device);

        let ids = Tensor::from_data(TensorData::new(ids.to_vec(), [1, tokens]), &self.device);
        let mut x = self.embed(ids, &layout);
        let mut probabilities = Vec::with_capacity(self.layers.len());
        self.each_layer(0..self.layers.len(), |_, layer| {
            let read = layer.attention_input(x.clone());
            let mask = mask(layer.attention.window);
            probabilities.push(layer.attention.probabilities(read, &indices, &mask, &context));
            x = layer.forward(x.clone(), &context, &mut Dropout::new(None, 0), None);
        })?;
        Ok(probabilities)
    }

    /// All layers and what follows them, `[N, D]`.
    pub(crate) fn forward(
        &self,
        ids: Tensor<2, Int>,
        layout: &Layout,
        mut caches: Option<&mut [Option<Cache>]>,
    ) -> Result<Tensor<2>, Error> {
        let context = self.context(ids.dims(), layout);
        let mut x = Some(self.embed(ids, layout));
        self.each_layer(0..self.layers.len(), |index, layer| {
            let cache = caches.as_deref_mut().map(|caches| &mut caches[index]);
            let mut dropout = Dropout::new(context.dropout_seed, index);
            x = x.take().map(|x| layer.forward(x, &context, &mut dropout, cache));
        })?;
        Ok(self.finish(x.expect("every layer gives what it takes"), &context))
    }

    /// What the layers of a pass share.
    pub(crate) fn context<'a>(&'a self, shape: [usize; 2], layout: &'a Layout) -> Context<'a> {
        self.context_beside(shape, layout, 1)
    }

    /// The same where so many passes are under way at a time.
    pub(crate) fn context_beside<'a>(
        &'a self,
        shape: [usize; 2],
        layout: &'a Layout,
        passes: usize,
    ) -> Context<'a> {
        let (learning, device) = (self.trainable != Trainable::Nothing, &self.device);
        let windows = self.config.windows(layout);
        let whole = softshard_products::attends(device) && layout.columns() >= LEAST_QUERIES;
        let tiles: Vec<_> = windows.keys().map(|&window| layout.tiles(window)).collect();
        let numbers: usize = tiles.iter().map(|tiles| layout.mask_numbers(tiles)).sum();
        // A graph keeps them all anyway.
        let kept = learning || numbers * passes <= MOST_KEPT;
        let view = |(window, windows, tiles): (Option<usize>, Vec<Option<usize>>, Vec<Tile>)| {
            let seen = if whole {
                Seen::Whole(layout.visible(window))
            } else if kept {
                let masks = tiles.iter().map(|tile| layout.mask(tile, window, device)).collect();
                Seen::Tiles { tiles, masks: Masks::Kept(masks) }
            } else {
                Seen::Tiles { tiles, masks: Masks::Made { layout, window, device } }
            };
            View { windows, seen }
        };
        Context {
            shape,
            padding: layout.padding(device),
            rope: self.rope.as_ref().map(|rope| (rope, rope.angles(layout, device))),
            views: windows
                .into_iter()
                .zip(tiles)
                .map(|((window, windows), tiles)| view((window, windows, tiles)))
                .collect(),
            dropout_seed: self.dropout_seed,
            learning,
            fuses: learning || softshard_products::on_host(device),
        }
    }

    /// The same where each row is the next token of a text whose cache says what it sees.
    pub(crate) fn context_of_next<'a>(&'a self, rows: usize, layout: &Layout) -> Context<'a> {
        Context {
            shape: [rows, 1],
            padding: None,
            rope: self.rope.as_ref().map(|rope| (rope, rope.angles(layout, &self.device))),
            views: Vec::new(),
            dropout_seed: None,
            learning: false,
            fuses: softshard_products::on_host(&self.device),
        }
    }

    /// The states that the first layer reads, `[N, model width]`.
    pub(crate) fn embed(&self, ids: Tensor<2, Int>, layout: &Layout) -> Tensor<2> {
        let [batch, tokens] = ids.dims();
        let dtype = self.activations.dtype();
        let mut x = cast(self.embedding.clone().select(0, ids.reshape([batch * tokens])), dtype);
        if let Some([project_in, _]) = &self.projections {
            x = project_in.forward(x, &mut Dropout::new(self.dropout_seed, self.layers.len()));
        }
        if let (Some(table), Positions::Learned { offset, .. }) = (&self.positions, &self.config.positions) {
            let [table_rows, _] = table.dims();
            let longest = layout.positions().into_iter().flatten().max().unwrap_or(0);
            assert!(
                longest + offset < table_rows,
                "a text of {} tokens, where there are {} positions",
                longest + 1,
                table_rows - offset
            );
            let row = |position: usize| i32::try_from(position + offset).expect("fewer than 2^31 positions");
            let rows: Vec<i32> = layout.positions().into_iter().flatten().map(row).collect();
            let (of_rows, width) = (rows.len() / tokens.max(1), self.config.hidden_size);
            let rows = Tensor::from_data(TensorData::new(rows, [of_rows * tokens]), &self.device);
            // One row of positions serves a whole batch.
            let places = cast(table.clone().select(0, rows), dtype).reshape([of_rows, tokens, width]);
            x = (x.reshape([batch, tokens, width]) + places).reshape([batch * tokens, width]);
        }
        x
    }

    /// From the states after the last layer to those that meet the head, `[N, D]`.
    pub(crate) fn finish(&self, x: Tensor<2>, context: &Context<'_>) -> Tensor<2> {
        let x = match &self.norm {
            Some(norm) => norm.forward(x),
            None => x,
        };
        match &self.projections {
            Some([_, project_out]) => {
                project_out.forward(x, &mut Dropout::new(context.dropout_seed, self.layers.len() + 1))
            }
            None => x,
        }
    }
}
