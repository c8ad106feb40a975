//! Hidden states of several continuations of a text, which is computed once.
//!
//! A layer reads the contexts first, as a batch of texts; then all continuations, each as a row that sees the keys and values of
//! its context and its own. They are kept for the layer at work alone.
//!
//! Legend: C contexts, S tokens of the longest, R continuations of more than one token, T tokens of the longest that are read, N
//! tokens of all continuations, K key heads, E head width, D width of the states that meet the head.

use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::cache::{Cache, Columns};
use crate::layout::Layout;
use crate::linear::Dropout;
use crate::rope::Rope;
use crate::{Decoder, Error};

/// A context and its continuations.
pub type Branches<'a> = (&'a [i32], Vec<&'a [i32]>);

/// Texts on their way through the layers.
struct Pass {
    /// `[B, columns]`, or `[1, tokens of all]` where they are ragged.
    ids: Tensor<2, Int>,
    layout: Layout,
    /// The row of the last token of each.
    last: Vec<usize>,
}

/// Continuations as they are read: without their last token, each behind its context.
struct Behind {
    pass: Pass,
    /// Of each place in their caches, `[R·(S+T)]`, the place in the cache of the contexts; what is written over has any.
    places: Tensor<1, Int>,
    rows: usize,
    /// S
    seen: usize,
}

impl Decoder {
    /// Hidden states that predict the tokens of continuations: the first is predicted by the last state of its context, each other
    /// one by the state of the token before it. Last tokens are not read.
    ///
    /// The same as [`hidden_before`](Self::hidden_before) of each context with each continuation, up to rounding, for the price of
    /// each context once. Where rotary angles go by the length of a text no context is shared: all is computed for each then.
    ///
    /// Memory: the states of all tokens, and the keys and values of one layer, those of a context once for each continuation.
    ///
    /// # Shapes
    /// The result: `[N, D]`, context by context, continuation by continuation, token by token.
    ///
    /// # Errors
    /// Streamed weights cannot be read.
    ///
    /// # Panics
    /// A context or a continuation is empty.
    pub fn hidden_of_continuations(&self, branches: &[Branches<'_>]) -> Result<Tensor<2>, Error> {
        let filled = |(context, continuations): &Branches<'_>| {
            !context.is_empty() && continuations.iter().all(|continuation| !continuation.is_empty())
        };
        assert!(branches.iter().all(filled), "contexts and continuations have at least one token");
        let frozen = self.frozen();
        if frozen.rope.as_ref().is_some_and(Rope::goes_by_length) {
            return frozen.hidden_of_wholes(branches);
        }
        let contexts: Vec<&[i32]> = branches.iter().map(|(context, _)| *context).collect();
        let contexts = Pass::new(&contexts, Layout::ragged, &frozen.device);
        let behind = Behind::of(branches, &frozen.device);
        let (contexts, behind) = frozen.through_layers(&contexts, behind.as_ref())?;
        let states = Tensor::cat([contexts].into_iter().chain(behind).collect(), 0);
        let order = indices(&order(branches), &frozen.device);
        Ok(states.select(0, order))
    }

    /// Last states of the contexts, `[C, D]`, and all states of what is read behind them.
    fn through_layers(
        &self,
        contexts: &Pass,
        behind: Option<&Behind>,
    ) -> Result<(Tensor<2>, Option<Tensor<2>>), Error> {
        let of_contexts = self.context_beside(contexts.ids.dims(), &contexts.layout, 2);
        let of_behind =
            behind.map(|Behind { pass, .. }| self.context_beside(pass.ids.dims(), &pass.layout, 2));
        let mut x = Some(self.embed(contexts.ids.clone(), &contexts.layout));
        let mut y = behind.map(|behind| self.embed(behind.pass.ids.clone(), &behind.pass.layout));
        self.each_layer(0..self.layers.len(), |index, layer| {
            let mut cache = None;
            let mut dropout = Dropout::new(None, index);
            x = x.take().map(|x| layer.forward(x, &of_contexts, &mut dropout, Some(&mut cache)));
            let columns = cache.and_then(Cache::into_columns);
            if let (Some(behind), Some(of_behind), Some(columns)) = (behind, &of_behind, columns) {
                let mut cache = Some(behind.spread(columns));
                y = y.take().map(|y| layer.forward(y, of_behind, &mut dropout, Some(&mut cache)));
            }
        })?;
        let x = x.expect("every layer gives what it takes").select(0, indices(&contexts.last, &self.device));
        let y = y.zip(of_behind.as_ref()).map(|(y, shared)| self.finish(y, shared));
        Ok((self.finish(x, &of_contexts), y))
    }

    /// Attention probabilities of the tokens of continuations of one text, which is computed once: layer by layer, `see` is given
    /// the number of the continuation and what each of its tokens gives to the text, to the tokens before it and to itself.
    ///
    /// # Shapes
    /// Of a text of S tokens and a continuation of T: `[H, T, S+T]`, f32.
    ///
    /// # Errors
    /// Streamed weights cannot be read.
    ///
    /// # Panics
    /// The text or a continuation is empty.
    pub fn attention_of_continuations(
        &self,
        text: &[i32],
        continuations: &[&[i32]],
        mut see: impl FnMut(usize, Tensor<3>),
    ) -> Result<(), Error> {
        assert!(!text.is_empty() && continuations.iter().all(|one| !one.is_empty()), "texts have tokens");
        let frozen = self.frozen();
        if frozen.rope.as_ref().is_some_and(Rope::goes_by_length) {
            for (number, continuation) in continuations.iter().enumerate() {
                let whole = [text, continuation].concat();
                let rows: Vec<usize> = (text.len()..whole.len()).collect();
                let layers = frozen.attention(&whole, &rows)?;
                layers.into_iter().for_each(|probabilities| see(number, probabilities));
            }
            return Ok(());
        }
        let before = Pass::new(&[text], Layout::ragged, &frozen.device);
        let seen = text.len();
        let behind = |one: &&[i32]| {
            Pass::new(&[one], |lengths| Layout::ragged_behind(lengths, seen, &[0]), &frozen.device)
        };
        let behind: Vec<Pass> = continuations.iter().map(behind).collect();
        let of_text = frozen.context(before.ids.dims(), &before.layout);
        let shared: Vec<_> =
            behind.iter().map(|pass| frozen.context(pass.ids.dims(), &pass.layout)).collect();
        let mut x = Some(frozen.embed(before.ids.clone(), &before.layout));
        let mut states: Vec<_> =
            behind.iter().map(|pass| frozen.embed(pass.ids.clone(), &pass.layout)).collect();
        frozen.each_layer(0..frozen.layers.len(), |index, layer| {
            let mut cache = None;
            let mut dropout = Dropout::new(None, index);
            x = x.take().map(|x| layer.forward(x, &of_text, &mut dropout, Some(&mut cache)));
            let Some(columns) = cache.and_then(Cache::into_columns) else { return };
            for (number, (state, shared)) in states.iter_mut().zip(&shared).enumerate() {
                let read = layer.attention_input(state.clone());
                see(number, layer.attention.probabilities_behind(read, &columns, shared));
                let mut cache = Some(Cache::Columns(columns.clone()));
                *state = layer.forward(state.clone(), shared, &mut dropout, Some(&mut cache));
            }
        })
    }

    /// The same states, each context computed with each of its continuations.
    fn hidden_of_wholes(&self, branches: &[Branches<'_>]) -> Result<Tensor<2>, Error> {
        let (mut texts, mut read) = (Vec::new(), Vec::new());
        for (context, continuations) in branches {
            for continuation in continuations {
                texts.push([context, &continuation[..continuation.len() - 1]].concat());
                read.push(continuation.len());
            }
        }
        let texts: Vec<&[i32]> = texts.iter().map(Vec::as_slice).collect();
        let pass = Pass::new(&texts, Layout::ragged, &self.device);
        let rows: Vec<usize> =
            pass.last.iter().zip(read).flat_map(|(&last, read)| last + 1 - read..=last).collect();
        Ok(self.forward(pass.ids, &pass.layout, None)?.select(0, indices(&rows, &self.device)))
    }
}

impl Pass {
    fn new(texts: &[&[i32]], layout: impl Fn(Vec<usize>) -> Layout, device: &Device) -> Self {
        let layout = layout(texts.iter().map(|text| text.len()).collect());
        let shape = if layout.ragged {
            [1, texts.iter().map(|text| text.len()).sum()]
        } else {
            [texts.len(), layout.columns()]
        };
        let mut end = 0;
        let last = texts.iter().map(|text| {
            end += text.len();
            end - 1
        });
        let last = last.collect();
        let ids = Tensor::from_data(TensorData::new(texts.concat(), shape), device);
        Self { ids, layout, last }
    }
}

impl Behind {
    /// None where no continuation has more than one token.
    fn of(branches: &[Branches<'_>], device: &Device) -> Option<Self> {
        let seen = branches.iter().map(|(context, _)| context.len()).max().unwrap_or(0);
        let (mut texts, mut of) = (Vec::new(), Vec::new());
        for (index, (_, continuations)) in branches.iter().enumerate() {
            for continuation in continuations.iter().filter(|continuation| continuation.len() > 1) {
                texts.push(&continuation[..continuation.len() - 1]);
                of.push(index);
            }
        }
        let read = texts.iter().map(|text| text.len()).max()?;
        let padding: Vec<usize> = of.iter().map(|&index| seen - branches[index].0.len()).collect();
        let places = of.iter().zip(&padding).flat_map(|(index, &padding)| {
            let column = move |column: usize| if column < seen { column.saturating_sub(padding) } else { 0 };
            (0..seen + read).map(move |place| index * seen + column(place))
        });
        let places = indices(&places.collect::<Vec<_>>(), device);
        let pass = Pass::new(&texts, |lengths| Layout::ragged_behind(lengths, seen, &padding), device);
        Some(Self { pass, places, rows: texts.len(), seen })
    }

    /// The keys and values of the contexts in the last columns before each continuation, with room for its own.
    fn spread(&self, columns: Columns) -> Cache {
        let spread = |x: Tensor<5>| {
            let [contexts, columns, heads, _, width] = x.dims();
            let x = x.reshape([contexts * columns, heads * width]).select(0, self.places.clone());
            let [places, _] = x.dims();
            x.reshape([self.rows, places / self.rows, heads, 1, width])
        };
        let (keys, values) = (spread(columns.keys), spread(columns.values));
        Cache::Columns(Columns { keys, values, length: self.seen })
    }
}

/// Which of the states, those of the contexts before those behind them, predicts each token.
fn order(branches: &[Branches<'_>]) -> Vec<usize> {
    let mut order = Vec::new();
    let mut next = branches.len();
    for (index, (_, continuations)) in branches.iter().enumerate() {
        for continuation in continuations {
            order.push(index);
            order.extend(next..next + continuation.len() - 1);
            next += continuation.len() - 1;
        }
    }
    order
}

fn indices(indices: &[usize], device: &Device) -> Tensor<1, Int> {
    let index = |&index: &usize| i32::try_from(index).expect("a batch has fewer than 2^31 places");
    let indices: Vec<i32> = indices.iter().map(index).collect();
    let count = indices.len();
    Tensor::from_data(TensorData::new(indices, [count]), device)
}
