//! Gradients one layer at a time: the forward pass keeps what each layer read and nothing else, the backward pass computes
//! one layer again with autodiff on and pulls the gradient of its output through it. Memory: the inputs of all layers and
//! the activations of one. With streamed layers a model larger than the memory trains an adapter.
//!
//! The numbers are those of one autodiff graph over the whole model, bit for bit on the CPU.
//!
//! Legend: N rows of all tokens, M labelled rows, D model width, V vocabulary.

use burn::tensor::{Gradients, Tensor};
use softshard_products::given;

use crate::batch::{Arrangement, Collated, collate};
use crate::linear::Dropout;
use crate::{Decoder, Error, Trainable};

/// Parameters with what was found of their gradients.
struct Leaves {
    values: Vec<Tensor<2>>,
    gradients: Vec<Option<Tensor<2>>>,
}

impl Leaves {
    /// Leaves of their own for the trainable parameters of `decoder`, so that no other graph is touched.
    fn of(decoder: &mut Decoder) -> Self {
        let fresh = |(_, parameter): (String, &mut Tensor<2>)| {
            *parameter = leaf(parameter.clone().inner());
            parameter.clone()
        };
        let values: Vec<Tensor<2>> = decoder.parameters_mut().into_iter().map(fresh).collect();
        let gradients = values.iter().map(|_| None).collect();
        Self { values, gradients }
    }

    /// A parameter may stand in two parts of the model: a tied head.
    fn add(&mut self, found: &Gradients) {
        for (value, sum) in self.values.iter().zip(&mut self.gradients) {
            if let Some(gradient) = value.grad(found) {
                *sum = Some(match sum.take() {
                    Some(before) => before + gradient,
                    None => gradient,
                });
            }
        }
    }

    fn into_gradients(self) -> Vec<Tensor<2>> {
        let zeros = |(value, gradient): (Tensor<2>, Option<Tensor<2>>)| {
            gradient.unwrap_or_else(|| value.inner().zeros_like())
        };
        self.values.into_iter().zip(self.gradients).map(zeros).collect()
    }
}

impl Decoder {
    /// The loss of a batch and its gradients by the trainable parameters, in the order of
    /// [`parameters_mut`](Self::parameters_mut).
    ///
    /// `loss` gets the hidden states that predict the tokens at `positions`, as
    /// [`hidden_before`](Self::hidden_before) gives them, `[M, D]`, and the head, `[V, D]`; it returns the scalar to
    /// derive and whatever else it found.
    ///
    /// # Errors
    /// Streamed weights cannot be read.
    ///
    /// # Panics
    /// A position is outside of its sequence, or nothing is trainable.
    pub fn backward_by_layer<R>(
        &self,
        sequences: &[&[i32]],
        positions: &[&[i32]],
        arrangement: Arrangement,
        loss: impl FnOnce(Tensor<2>, Tensor<2>) -> (Tensor<1>, R),
    ) -> Result<(Vec<Tensor<2>>, R), Error> {
        assert!(self.trainable != Trainable::Nothing, "something is trainable where gradients are asked for");
        let Collated { ids, rows, layout } = collate(sequences, positions, arrangement, &self.device);
        let constant = self.untracked();
        let context = constant.context(ids.dims(), &layout);
        let dropout = |layer: usize| Dropout::new(context.dropout_seed, layer);

        let mut inputs = Vec::with_capacity(self.layers.len());
        let mut x = constant.embed(ids.clone(), &layout);
        constant.each_layer(0..self.layers.len(), |index, layer| {
            inputs.push(x.clone());
            x = layer.forward(x.clone(), &context, &mut dropout(index), None);
        })?;

        let mut tracked = self.clone();
        let mut leaves = Leaves::of(&mut tracked);
        let last = leaf(x);
        let hidden = tracked.finish(last.clone(), &context).select(0, rows);
        let (value, found_beside) = loss(hidden, tracked.head());
        let found = value.backward();
        leaves.add(&found);
        let mut d_output = gradient_of(&last, &found);

        let embedding_learns = self.embedding_learns();
        tracked.each_layer((0..self.layers.len()).rev(), |index, layer| {
            let input = inputs.pop().expect("each layer has read something");
            // Nothing below the first layer learns from an adapter on the layers.
            let input = if index > 0 || embedding_learns { leaf(input) } else { input };
            // The product by one stands where the whole graph has the layer below: gradients are summed in the same order.
            let output = layer.forward(input.clone() * 1.0, &context, &mut dropout(index), None);
            if output.is_tracked() {
                let found = pull(output, d_output.clone());
                leaves.add(&found);
                if input.is_tracked() {
                    d_output = gradient_of(&input, &found);
                }
            }
        })?;
        if embedding_learns {
            leaves.add(&pull(tracked.embed(ids, &layout), d_output));
        }
        Ok((leaves.into_gradients(), found_beside))
    }

    /// Whether a parameter before the first layer learns.
    fn embedding_learns(&self) -> bool {
        let project_in = self.projections.as_ref().is_some_and(|[project_in, _]| project_in.lora.is_some());
        self.trainable == Trainable::Model || project_in
    }

    /// The same values, dropout included, without a graph.
    fn untracked(&self) -> Self {
        let mut constant = self.clone();
        for (_, parameter) in constant.parameters_mut() {
            *parameter = parameter.clone().inner();
        }
        constant
    }
}

fn leaf(value: Tensor<2>) -> Tensor<2> {
    value.autodiff().require_grad()
}

/// Gradients of what `output` was computed from, given that of `output` itself: those of `Σ output · d_output`.
fn pull(output: Tensor<2>, d_output: Tensor<2>) -> Gradients {
    given(output, d_output).backward()
}

fn gradient_of(leaf: &Tensor<2>, found: &Gradients) -> Tensor<2> {
    leaf.grad(found).expect("the loss depends on every state")
}
