//! What a step computes, and its gradients over some of its micro-batches.

use std::{io, ops::Range, sync::Arc};

use anyhow::Result;
use burn::tensor::Device;
use rayon::prelude::*;
use softshard_losses::DistillLoss;
use softshard_model::{Decoder, Fitting, OutOfMemory};

use crate::{
    batches::Batch,
    config::Checkpointing,
    pass::{DropoutOf, Pass},
};

/// One step: the same for every device that computes a part of it.
pub(crate) struct Step {
    /// Its micro-batches, in the order in which their gradients are summed.
    pub(crate) batches: Vec<Batch>,
    pub(crate) loss: DistillLoss,
    pub(crate) checkpointing: Checkpointing,
    /// Of each micro-batch.
    pub(crate) dropout_seeds: Vec<u64>,
    /// Labelled tokens of the whole step.
    pub(crate) divide_by: f64,
    /// What fitted in the memory of the devices so far.
    pub(crate) fitting: Arc<Fitting>,
}

impl Step {
    /// Tokens that are scored, in all of its micro-batches.
    pub(crate) fn labelled_tokens(&self) -> usize {
        self.batches.iter().map(|batch| batch.targets.len()).sum()
    }

    /// Forward and backward over these micro-batches, all at a time; one that does not fit in the memory of the device is done in
    /// halves, by sequences.
    ///
    /// # Errors
    /// Streamed weights cannot be read; one sequence does not fit.
    pub(crate) fn passes(&self, decoder: &Decoder, batches: Range<usize>) -> Result<Vec<Pass>> {
        let pass = |index: usize| {
            let seed = self.dropout_seeds[index];
            in_parts(&self.batches[index], seed, &self.fitting, decoder.device(), |batch, dropout| {
                Ok(Pass::over(batch, decoder, self.checkpointing, dropout, &self.loss, self.divide_by)?)
            })
        };
        Ok(match batches.len() {
            1 => vec![pass(batches.start)?],
            _ => batches.into_par_iter().map(pass).collect::<Result<_, _>>()?,
        })
    }
}

/// Sums what `pass` finds in a micro-batch, or in the parts of it that fit. The loss is a sum over tokens and divided by those of the
/// step, so parts have the same loss and gradient up to the order of the sums, and drop the same.
fn in_parts(
    batch: &Batch,
    seed: u64,
    fitting: &Fitting,
    device: &Device,
    pass: impl Fn(&Batch, DropoutOf) -> Result<Pass>,
) -> Result<Pass> {
    let sequences: Vec<usize> = (0..batch.input_ids.len()).collect();
    let lengths = |sequences: &[usize]| sequences.iter().map(|&index| batch.input_ids[index].len()).sum();
    let tokens = batch.tokens();
    let work = |part: &[usize]| -> Result<Pass> {
        let first = part.first().copied().unwrap_or(0);
        if part.len() == sequences.len() {
            return pass(batch, DropoutOf { seed, tokens_before: 0, tokens });
        }
        let tokens_before = lengths(&sequences[..first]);
        pass(&batch.part(first..first + part.len()), DropoutOf { seed, tokens_before, tokens })
    };
    let passes = fitting.each(&sequences, &lengths, device, &work).map_err(|error| {
        match error.downcast::<OutOfMemory>() {
            Ok(error) => too_large(batch, &error),
            Err(error) => error,
        }
    })?;
    let mut sum = Pass::default();
    passes.into_iter().for_each(|pass| sum.add(pass));
    Ok(sum)
}

/// Nothing can be halved any more: one sequence, the longest at the most, is too large.
fn too_large(batch: &Batch, error: &OutOfMemory) -> anyhow::Error {
    let longest = batch.input_ids.iter().map(Vec::len).max().unwrap_or(0);
    let message = format!(
        "the device is out of memory with one sequence at a time (the longest here has {longest} tokens): {error}\n\
         hint: `checkpointing = \"layer\"`, `residency = \"streamed\"`, `quantise` or a smaller `rows_per_chunk` take less, and so do shorter \
         sequences (`data.max_tokens`); `max_tokens_per_batch` is not what is too large; checkpoints are as they were"
    );
    io::Error::new(io::ErrorKind::OutOfMemory, message).into()
}

#[cfg(test)]
mod tests {
    use burn::tensor::Tensor;
    use softshard_model::Arrangement;

    use super::*;
    use crate::batches::tests::{batch, decoder_with_dropout};

    /// Of the norm; f32 sums in another order.
    const OTHER_ORDER: f32 = 1e-5;

    /// A device that has room for so many tokens of a pass, and panics as Burn does.
    fn step_in(
        room: usize,
        arrangement: Arrangement,
        checkpointing: Checkpointing,
        decoder: &Decoder,
    ) -> Result<Pass> {
        let loss = DistillLoss::forward_kl(0.7, 64);
        let fitting = Fitting::default();
        in_parts(&batch(arrangement), 7, &fitting, decoder.device(), |part, dropout| {
            assert!(part.tokens() <= room, "out of device memory allocating {} bytes", part.tokens());
            Ok(Pass::over(part, decoder, checkpointing, dropout, &loss, 100.0)?)
        })
    }

    #[test]
    fn what_is_out_of_memory_has_the_same_loss_and_gradient_in_halves() {
        let tokens = batch(Arrangement::Ragged).tokens();
        let decoder = decoder_with_dropout();
        for arrangement in [Arrangement::Ragged, Arrangement::Packed] {
            for checkpointing in [Checkpointing::None, Checkpointing::Layer] {
                let pass =
                    |room| step_in(room, arrangement, checkpointing, &decoder).expect("it fits in parts");
                let whole = pass(tokens);
                for room in [tokens - 1, 310, 270] {
                    let halved = pass(room);
                    let sums = |pass: &Pass| [pass.loss, pass.cross_entropy, pass.divergence];
                    for (halved, whole) in sums(&halved).into_iter().zip(sums(&whole)) {
                        let far = (halved - whole).abs();
                        assert!(far <= f64::from(OTHER_ORDER) * whole, "{halved} and {whole}");
                    }
                    assert_eq!(halved.gradients.len(), whole.gradients.len());
                    for (index, (halved, whole)) in halved.gradients.iter().zip(&whole.gradients).enumerate()
                    {
                        let norm = |x: Tensor<2>| x.powf_scalar(2.0).sum().sqrt().into_scalar::<f32>();
                        let (far, size) = (norm(halved.clone() - whole.clone()), norm(whole.clone()));
                        assert!(
                            size > 0.0 && far <= OTHER_ORDER * size,
                            "parameter {index}: {far} of {size}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn one_sequence_that_is_too_large_says_what_would_fit() {
        let decoder = decoder_with_dropout();
        let error =
            step_in(269, Arrangement::Ragged, Checkpointing::None, &decoder).err().expect("too large");
        for part in ["the longest here has 270 tokens", "out of device memory", "checkpointing", "hint:"] {
            assert!(error.to_string().contains(part), "{part}: {error}");
        }
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        assert_eq!(kind, Some(io::ErrorKind::OutOfMemory), "exit code 4");
    }
}
