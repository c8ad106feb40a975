//! RoBERTa with a classifier over its first token: post-norm layers, learned positions (arXiv 1907.11692).
//!
//! Legend: B texts, N tokens of all, D model width, C classes.

use std::path::Path;

use burn::tensor::{Device, Tensor};
use serde_json::json;
use softshard_model::{Activation, Linear, Norm, Tensors};

use crate::Error;
use crate::attention::View;
use crate::batch::{Batch, index, indices};
use crate::config::Config;

/// Where a classifier's weights stand in the file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Names {
    encoder: &'static str,
    dense: &'static str,
    out: &'static str,
    /// Beginnings of tensors that are stored and not needed.
    unused: &'static [&'static str],
}

/// `RobertaForSequenceClassification`.
pub(crate) const CLASSIFIER: Names = Names {
    encoder: "roberta",
    dense: "classifier.dense",
    out: "classifier.out_proj",
    unused: &["roberta.embeddings.position_ids", "roberta.pooler.", "lm_head."],
};

/// AlignScore's model: the pooler and the head of three classes (its other heads are trained with it and not used).
pub(crate) const ALIGN_SCORE: Names = Names {
    encoder: "base_model",
    dense: "base_model.pooler.dense",
    out: "tri_layer",
    unused: &["base_model.embeddings.position_ids", "mlm_head.", "bin_layer.", "reg_layer."],
};

/// An encoder with a classifier.
pub(crate) struct Roberta {
    words: Tensor<2>,
    positions: Tensor<2>,
    /// Of the only segment, `[1, D]`.
    segment: Tensor<2>,
    norm: Norm,
    layers: Vec<Layer>,
    dense: Linear,
    out: Linear,
    heads: usize,
    /// The first token's position.
    first_position: usize,
}

struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    attention_norm: Norm,
    up: Linear,
    down: Linear,
    norm: Norm,
}

/// The shape that a configuration gives.
struct Shape {
    vocabulary: usize,
    width: usize,
    inner: usize,
    layers: usize,
    heads: usize,
    positions: usize,
    segments: usize,
    classes: usize,
    epsilon: f64,
    padding: usize,
}

impl Shape {
    fn read(config: &Config, classes: usize) -> Result<Self, Error> {
        config.only("hidden_act", &json!("gelu"))?;
        config.only("position_embedding_type", &json!("absolute"))?;
        config.only("is_decoder", &json!(false))?;
        let (width, positions) = (config.size("hidden_size")?, config.size("max_position_embeddings")?);
        let padding = match config.value("pad_token_id") {
            None => 1,
            Some(value) => value
                .as_u64()
                .and_then(|padding| usize::try_from(padding).ok())
                .filter(|padding| padding + 1 < positions)
                .ok_or_else(|| config.bad("pad_token_id", format!("an id below {}", positions - 1), value))?,
        };
        Ok(Self {
            vocabulary: config.size("vocab_size")?,
            inner: config.size("intermediate_size")?,
            layers: config.size("num_hidden_layers")?,
            heads: config.heads("num_attention_heads", width)?,
            segments: config.optional_size("type_vocab_size")?.unwrap_or(2),
            epsilon: config.number("layer_norm_eps", 1e-12)?,
            width,
            positions,
            classes,
            padding,
        })
    }

    fn parameters(&self, names: Names) -> Vec<(String, Vec<usize>)> {
        let Self { width, inner, .. } = *self;
        let mut list = Vec::new();
        let mut map = |name: String, rows: usize, columns: usize| {
            list.push((format!("{name}.weight"), vec![rows, columns]));
            list.push((format!("{name}.bias"), vec![rows]));
        };
        map(names.dense.to_owned(), width, width);
        map(names.out.to_owned(), self.classes, width);
        for layer in (0..self.layers).map(|index| format!("{}.encoder.layer.{index}", names.encoder)) {
            for part in ["self.query", "self.key", "self.value", "output.dense"] {
                map(format!("{layer}.attention.{part}"), width, width);
            }
            map(format!("{layer}.intermediate.dense"), inner, width);
            map(format!("{layer}.output.dense"), width, inner);
        }
        let norms = (0..self.layers).flat_map(|index| {
            ["attention.output", "output"]
                .map(|part| format!("{}.encoder.layer.{index}.{part}", names.encoder))
        });
        let embeddings = format!("{}.embeddings", names.encoder);
        for norm in norms.chain([embeddings.clone()]) {
            for part in ["weight", "bias"] {
                list.push((format!("{norm}.LayerNorm.{part}"), vec![width]));
            }
        }
        let tables = [("word", self.vocabulary), ("position", self.positions), ("token_type", self.segments)];
        for (table, rows) in tables {
            list.push((format!("{embeddings}.{table}_embeddings.weight"), vec![rows, width]));
        }
        list
    }
}

impl Roberta {
    /// # Errors
    /// The configuration has settings of another model, or the tensors are not those that it describes.
    pub(crate) fn load(
        folder: &Path,
        config: &Config,
        names: Names,
        classes: usize,
        device: &Device,
    ) -> Result<Self, Error> {
        let shape = Shape::read(config, classes)?;
        let is_unused = |name: &str| names.unused.iter().any(|start| name.starts_with(start));
        let tensors = Tensors::open(folder, &shape.parameters(names), is_unused, device)?;
        let layer = |index: usize| {
            let name = |part: &str| format!("{}.encoder.layer.{index}.{part}", names.encoder);
            let norm = |part: &str| tensors.layer_norm(&name(part), shape.epsilon);
            Ok(Layer {
                query: tensors.linear(&name("attention.self.query"))?,
                key: tensors.linear(&name("attention.self.key"))?,
                value: tensors.linear(&name("attention.self.value"))?,
                output: tensors.linear(&name("attention.output.dense"))?,
                attention_norm: norm("attention.output.LayerNorm")?,
                up: tensors.linear(&name("intermediate.dense"))?,
                down: tensors.linear(&name("output.dense"))?,
                norm: norm("output.LayerNorm")?,
            })
        };
        let embeddings = |part: &str| format!("{}.embeddings.{part}", names.encoder);
        let table = |part: &str| tensors.tensor(&embeddings(&format!("{part}_embeddings.weight")));
        Ok(Self {
            words: table("word")?,
            positions: table("position")?,
            segment: table("token_type")?.narrow(0, 0, 1),
            norm: tensors.layer_norm(&embeddings("LayerNorm"), shape.epsilon)?,
            layers: (0..shape.layers).map(layer).collect::<Result<_, Error>>()?,
            dense: tensors.linear(names.dense)?,
            out: tensors.linear(names.out)?,
            heads: shape.heads,
            first_position: shape.padding + 1,
        })
    }

    pub(crate) fn vocabulary(&self) -> usize {
        self.words.dims()[0]
    }

    /// The most tokens that a text may have.
    pub(crate) fn limit(&self) -> usize {
        self.positions.dims()[0] - self.first_position
    }

    /// # Shapes
    /// The result: `[B, C]`.
    pub(crate) fn logits(&self, batch: &Batch) -> Tensor<2> {
        let places = batch.positions().into_iter().map(|place| index(place + self.first_position)).collect();
        let positions = self.positions.clone().select(0, indices(places, batch.device()));
        let words = self.words.clone().select(0, batch.ids.clone());
        let mut x = self.norm.forward(words + positions + self.segment.clone());
        let view = View::new(batch, None);
        for layer in &self.layers {
            x = layer.forward(x, batch, &view, self.heads);
        }
        let first = x.select(0, batch.first_rows());
        self.out.apply(self.dense.apply(first).tanh())
    }
}

impl Layer {
    /// # Shapes
    /// `x` and the result: `[N, D]`.
    fn forward(&self, x: Tensor<2>, batch: &Batch, view: &View, heads: usize) -> Tensor<2> {
        let scale = ((x.dims()[1] / heads) as f64).powf(-0.5);
        let query = batch.by_head(self.query.apply(x.clone()) * scale, heads);
        let key = batch.by_head(self.key.apply(x.clone()), heads);
        let value = batch.by_head(self.value.apply(x.clone()), heads);
        let mixed = self.output.apply(batch.by_row(view.attend(&query, key, &value)));
        let x = self.attention_norm.forward(x + mixed);
        let inner = Activation::Gelu.apply(self.up.apply(x.clone()));
        self.norm.forward(x + self.down.apply(inner))
    }
}
