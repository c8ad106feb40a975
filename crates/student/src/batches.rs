//! One micro-batch, and the sequences that it is made of.

use std::ops::Range;

use anyhow::Result;
use softshard_losses::Targets;
use softshard_model::Arrangement;

use crate::{example::Example, examples::Examples};

/// One micro-batch: what one forward and backward pass reads.
pub(crate) struct Batch {
    pub(crate) input_ids: Vec<Vec<i32>>,
    pub(crate) positions: Vec<Vec<i32>>,
    /// One row per scored token, sequence by sequence.
    pub(crate) targets: Targets,
    /// How the sequences lie.
    pub(crate) arrangement: Arrangement,
}

impl Batch {
    pub(crate) fn new(examples: impl IntoIterator<Item = Example>, arrangement: Arrangement) -> Self {
        let mut batch =
            Batch { input_ids: Vec::new(), positions: Vec::new(), targets: Targets::default(), arrangement };
        for example in examples {
            batch.input_ids.push(example.input_ids);
            batch.positions.push(example.positions);
            batch.targets.append(example.targets);
        }
        batch
    }

    /// Reads the sequences at `indices`, for a student with a head of `vocabulary` rows.
    ///
    /// # Errors
    /// A row that does not decode or breaks the format's rules.
    pub(crate) fn read(
        examples: &Examples,
        indices: &[u32],
        arrangement: Arrangement,
        vocabulary: usize,
    ) -> Result<Self> {
        let read = |&index: &u32| {
            let mut example = examples.read(index)?;
            example.targets.fold_ids_from(vocabulary);
            Ok(example)
        };
        Ok(Batch::new(indices.iter().map(read).collect::<Result<Vec<_>>>()?, arrangement))
    }

    /// Token ids and scored positions of each sequence.
    pub(crate) fn rows(&self) -> (Vec<&[i32]>, Vec<&[i32]>) {
        fn slices(rows: &[Vec<i32>]) -> Vec<&[i32]> {
            rows.iter().map(Vec::as_slice).collect()
        }
        (slices(&self.input_ids), slices(&self.positions))
    }

    /// The sequences `range` of these.
    pub(crate) fn part(&self, range: Range<usize>) -> Self {
        let rows = |sequences: &[Vec<i32>]| sequences.iter().map(Vec::len).sum::<usize>();
        let first = rows(&self.positions[..range.start]);
        Batch {
            targets: self.targets.part(first..first + rows(&self.positions[range.clone()])),
            input_ids: self.input_ids[range.clone()].to_vec(),
            positions: self.positions[range].to_vec(),
            arrangement: self.arrangement,
        }
    }

    /// Tokens, without padding.
    pub(crate) fn tokens(&self) -> usize {
        self.input_ids.iter().map(Vec::len).sum()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use burn::tensor::{Device, Tensor};
    use softshard_losses::DistillLoss;
    use softshard_model::{Decoder, DecoderConfig, LoraConfig, Trainable};

    use super::*;
    use crate::{
        config::Checkpointing,
        pass::{DropoutOf, Pass},
    };

    const SHAPE: &str = r#"{
      "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48,
      "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_act": "silu", "rope_theta": 10000.0,
      "max_position_embeddings": 512, "initializer_range": 0.2, "rms_norm_eps": 1e-5, "tie_word_embeddings": false
    }"#;
    /// Of the norm; f32 sums in another order.
    const OTHER_ORDER: f32 = 1e-5;

    pub(crate) fn decoder(lora: bool) -> Decoder {
        decoder_with(lora.then_some(0.0))
    }

    pub(crate) fn decoder_with_dropout() -> Decoder {
        decoder_with(Some(0.3))
    }

    /// With a LoRA of this dropout, or all weights trainable.
    fn decoder_with(dropout: Option<f64>) -> Decoder {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("config.json"), SHAPE).expect("the shape is written");
        let config = DecoderConfig::load(folder.path()).expect("a shape");
        let mut decoder = Decoder::random(config, 1, &Device::flex().autodiff());
        if let Some(dropout) = dropout {
            let lora = format!(
                r#"{{ "r": 4, "alpha": 8.0, "dropout": {dropout}, "target_modules": ["q_proj", "down_proj"] }}"#
            );
            let lora: LoraConfig = serde_json::from_str(&lora).expect("a good section");
            decoder.attach_lora(&lora, 1).expect("the matrices are there");
            decoder.train(Trainable::Adapter);
            // Factors that are not 0, so that all have gradients.
            for (_, factor) in decoder.parameters_mut() {
                *factor = factor.clone().inner() + 0.02;
            }
            decoder.train(Trainable::Adapter);
        } else {
            decoder.train(Trainable::Model);
        }
        decoder
    }

    /// Lengths from 2 to beyond a tile of attention, labelled now and then.
    pub(crate) fn batch(arrangement: Arrangement) -> Batch {
        let example = |length: i32| {
            let input_ids: Vec<i32> = (0..length).map(|at| (at * at + 7 * length) % 60).collect();
            let positions: Vec<i32> = (1..length).filter(|at| at % 3 != 0).collect();
            let rows = positions.len();
            let kept = i32::try_from(rows).expect("a few");
            let targets = Targets {
                gold: positions.iter().map(|at| (at * at + 7 * length) % 60).collect(),
                counts: vec![2; rows],
                token_ids: (0..kept).flat_map(|row| [row % 60, (row + 9) % 60]).collect(),
                log_probs: [-0.5, -1.5].repeat(rows),
                tail_log_mass: vec![-1.777; rows],
                alpha_factors: vec![1.0; rows],
                ..Targets::without_teacher(vec![0; rows])
            };
            Example { input_ids, positions, targets }
        };
        Batch::new([40, 2, 270, 17, 33].map(example), arrangement)
    }

    #[test]
    fn packed_sequences_have_the_loss_and_the_gradients_of_padded_ones() {
        let loss = DistillLoss::forward_kl(0.7, 64);
        for lora in [false, true] {
            let decoder = decoder(lora);
            let pass = |arrangement, checkpointing| {
                let dropout = DropoutOf { seed: 0, tokens_before: 0, tokens: 0 };
                Pass::over(&batch(arrangement), &decoder, checkpointing, dropout, &loss, 100.0)
                    .expect("resident")
            };
            let padded = pass(Arrangement::Padded, Checkpointing::None);
            for checkpointing in [Checkpointing::None, Checkpointing::Layer] {
                let packed = pass(Arrangement::Packed, checkpointing);
                for (one, other) in [(packed.loss, padded.loss), (packed.divergence, padded.divergence)] {
                    assert!((one - other).abs() <= f64::from(OTHER_ORDER) * other, "{one} and {other}");
                }
                assert_eq!(packed.gradients.len(), padded.gradients.len());
                for (index, (packed, padded)) in packed.gradients.iter().zip(&padded.gradients).enumerate() {
                    let norm = |tensor: Tensor<2>| tensor.powf_scalar(2.0).sum().sqrt().into_scalar::<f32>();
                    let (far, size) = (norm(packed.clone() - padded.clone()), norm(padded.clone()));
                    assert!(size > 0.0 && far <= OTHER_ORDER * size, "parameter {index}: {far} of {size}");
                }
            }
        }
    }
}
