//! T5 with gated feed-forward parts: an encoder with a classifier of tokens, or with the first step of its decoder (arXiv 1910.10683, 2210.11416).
//!
//! Attention has no scale; positions are a bias by distance, shared by all layers of a stack; norms take no mean off.
//!
//! Legend: B texts, N tokens of all, D model width, H heads, E head width, V vocabulary, C classes.

use std::path::Path;

use burn::tensor::{Device, Int, Tensor, TensorData};
use serde_json::{Value, json};
use softshard_model::{Activation, Linear, Norm, Tensors};

use crate::Error;
use crate::attention::View;
use crate::batch::{Batch, index, indices};
use crate::config::{Config, MAX_LAYERS};

/// Where T5's decoder begins.
const START: i32 = 0;

/// What is asked of the encoder's states.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Task {
    /// The classes of each text's first token.
    FirstToken,
    /// The logits of these tokens at the decoder's first step.
    FirstStep([usize; 2]),
}

/// An encoder with what is asked of it.
pub(crate) struct T5 {
    /// `[V, D]`.
    words: Tensor<2>,
    /// Of each bucket of distances, `[buckets, H]`.
    bias: Tensor<2>,
    max_distance: usize,
    layers: Vec<Layer>,
    final_norm: Norm,
    head: Head,
}

struct Layer {
    attention: Attention,
    feed_forward: FeedForward,
}

struct Attention {
    norm: Norm,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
}

struct FeedForward {
    norm: Norm,
    gate: Linear,
    up: Linear,
    down: Linear,
}

#[expect(clippy::large_enum_variant, reason = "one a scorer")]
enum Head {
    Classifier(Linear),
    Decoder(Decoder),
}

/// The first step of a decoder: one token that sees itself and the text.
struct Decoder {
    layers: Vec<DecoderLayer>,
    final_norm: Norm,
    /// Rows of the output matrix that are asked for, `[C, D]`.
    answers: Tensor<2>,
    /// What states are multiplied by before them.
    scale: f64,
}

struct DecoderLayer {
    /// One token alone attends to itself: its value is all that counts.
    norm: Norm,
    value: Linear,
    output: Linear,
    cross: Attention,
    feed_forward: FeedForward,
}

/// The sizes of a model, which its tensors say: HHEM's configuration has none.
struct Shape {
    prefix: String,
    vocabulary: usize,
    width: usize,
    /// Of all heads together.
    inner: usize,
    heads: usize,
    buckets: usize,
    feed_forward: usize,
    layers: usize,
    decoder_layers: usize,
    classes: usize,
}

type Shapes = std::collections::BTreeMap<String, Vec<usize>>;

impl Shape {
    /// # Errors
    /// Tensors that T5 has are not there, or their sizes are not those of the configuration.
    fn read(folder: &Path, config: &Config, stored: &Shapes, classes: usize) -> Result<Self, Error> {
        const PREFIXES: [&str; 3] = ["t5.transformer.", "transformer.", ""];
        let bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
        let has = |prefix: &&str| stored.contains_key(&format!("{prefix}{bias}"));
        let prefix = PREFIXES.into_iter().find(has).ok_or_else(|| {
            Error::bad(format!("`{}`", folder.display()), format!("T5's tensors, as `{bias}`"), "none")
        })?;
        let matrix = |name: &str| {
            let name = format!("{prefix}{name}");
            match stored.get(&name).map(Vec::as_slice) {
                Some(&[rows, columns]) => Ok((rows, columns)),
                found => {
                    let found = found.map_or("no such tensor".to_owned(), |shape| format!("shape {shape:?}"));
                    Err(Error::bad(format!("`{}`: tensor `{name}`", folder.display()), "a matrix", found))
                }
            }
        };
        let count = |stack: &str| {
            let has = |layer: &usize| {
                stored.contains_key(&format!("{prefix}{stack}.block.{layer}.layer.0.layer_norm.weight"))
            };
            (0..MAX_LAYERS).take_while(has).count()
        };
        let (buckets, heads) = matrix(bias)?;
        let (inner, width) = matrix("encoder.block.0.layer.0.SelfAttention.q.weight")?;
        let words = if stored.contains_key(&format!("{prefix}shared.weight")) { SHARED } else { EMBEDDING };
        let shape = Self {
            vocabulary: matrix(words)?.0,
            feed_forward: matrix("encoder.block.0.layer.1.DenseReluDense.wi_0.weight")?.0,
            layers: count("encoder"),
            decoder_layers: count("decoder"),
            prefix: prefix.to_owned(),
            width,
            inner,
            heads,
            buckets,
            classes,
        };
        shape.compare(config)?;
        Ok(shape)
    }

    /// # Errors
    /// The sizes are none that T5 has, or not those that the configuration says.
    fn compare(&self, config: &Config) -> Result<(), Error> {
        const BUCKETS: &str = "relative_attention_num_buckets";
        let Self { buckets, heads, inner, .. } = *self;
        if buckets < 4 || !buckets.is_multiple_of(4) {
            return Err(config.bad(BUCKETS, "a multiple of 4", buckets));
        }
        if heads == 0 || inner == 0 || self.width == 0 || !inner.is_multiple_of(heads) {
            let expected = format!("a number that divides {inner}, of a width of {}", self.width);
            return Err(config.bad("num_heads", expected, heads));
        }
        let sizes = [
            ("vocab_size", self.vocabulary),
            ("d_model", self.width),
            ("num_heads", heads),
            ("d_kv", inner / heads),
            ("d_ff", self.feed_forward),
            ("num_layers", self.layers),
            (BUCKETS, buckets),
        ];
        for (key, found) in sizes {
            match config.optional_size(key)? {
                Some(size) if size != found => {
                    return Err(config.bad(key, format!("{found}, as the tensors have it"), size));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn attention(&self, name: &str, list: &mut Vec<(String, Vec<usize>)>) {
        for part in ["q", "k", "v"] {
            list.push((format!("{name}.{part}.weight"), vec![self.inner, self.width]));
        }
        list.push((format!("{name}.o.weight"), vec![self.width, self.inner]));
    }

    fn parameters(&self, words: &str, head: Option<&str>, task: Task) -> Vec<(String, Vec<usize>)> {
        let (width, feed_forward) = (self.width, self.feed_forward);
        let named = |part: &str| format!("{}{part}", self.prefix);
        let mut list = vec![(named(words), vec![self.vocabulary, width])];
        let stacks: &[(&str, usize, &[&str])] = &[
            ("encoder", self.layers, &["SelfAttention"]),
            ("decoder", self.decoder_layers, &["SelfAttention", "EncDecAttention"]),
        ];
        let used = if matches!(task, Task::FirstToken) { 1 } else { 2 };
        for (stack, layers, attentions) in stacks.iter().take(used) {
            let bias =
                named(&format!("{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"));
            list.push((bias, vec![self.buckets, self.heads]));
            list.push((named(&format!("{stack}.final_layer_norm.weight")), vec![width]));
            for block in (0..*layers).map(|index| named(&format!("{stack}.block.{index}.layer"))) {
                for (place, attention) in attentions.iter().enumerate() {
                    self.attention(&format!("{block}.{place}.{attention}"), &mut list);
                }
                let last = attentions.len();
                for part in ["wi_0", "wi_1"] {
                    let name = format!("{block}.{last}.DenseReluDense.{part}.weight");
                    list.push((name, vec![feed_forward, width]));
                }
                list.push((format!("{block}.{last}.DenseReluDense.wo.weight"), vec![width, feed_forward]));
                list.extend(
                    (0..=last).map(|place| (format!("{block}.{place}.layer_norm.weight"), vec![width])),
                );
            }
        }
        match (task, head) {
            (Task::FirstToken, _) => {
                let name = self.classifier();
                list.push((format!("{name}.weight"), vec![self.classes, width]));
                list.push((format!("{name}.bias"), vec![self.classes]));
            }
            (Task::FirstStep(_), Some(head)) => list.push((head.to_owned(), vec![self.vocabulary, width])),
            (Task::FirstStep(_), None) => {}
        }
        list
    }

    /// HHEM keeps its classifier beside its transformer.
    fn classifier(&self) -> String {
        format!("{}classifier", self.prefix.strip_suffix("transformer.").unwrap_or_default())
    }
}

const SHARED: &str = "shared.weight";
const EMBEDDING: &str = "encoder.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
const MAX_DISTANCE: &str = "relative_attention_max_distance";

impl T5 {
    /// # Errors
    /// The configuration has settings of another model, or the tensors are not those that it describes.
    pub(crate) fn load(folder: &Path, config: &Config, task: Task, device: &Device) -> Result<Self, Error> {
        config.only("feed_forward_proj", &json!("gated-gelu"))?;
        let stored = Tensors::shapes(folder)?;
        let shape = Shape::read(folder, config, &stored, config.classes()?)?;
        if let Task::FirstStep(answers) = task {
            let most = answers.into_iter().max().unwrap_or(0);
            if shape.vocabulary <= most || shape.decoder_layers == 0 {
                let found =
                    format!("{} tokens, {} layers of a decoder", shape.vocabulary, shape.decoder_layers);
                let expected = format!("a decoder and a vocabulary of more than {most}");
                return Err(Error::bad(format!("`{}`", folder.display()), expected, found));
            }
        }
        let max_distance = config.optional_size(MAX_DISTANCE)?.unwrap_or(128);
        if max_distance <= shape.buckets / 4 {
            let expected = format!("more than {}, a fourth of the buckets", shape.buckets / 4);
            return Err(config.bad(MAX_DISTANCE, expected, max_distance));
        }
        let epsilon = config.number("layer_norm_epsilon", 1e-6)?;
        let name = |part: &str| format!("{}{part}", shape.prefix);
        let words = if stored.contains_key(&name(SHARED)) { SHARED } else { EMBEDDING };
        let head = stored.contains_key(HEAD).then_some(HEAD);
        // Copies of the embedding that older files carry.
        let copies = [name(EMBEDDING), name("decoder.embed_tokens.weight")];
        let is_unused = |name: &str| copies.iter().any(|copy| copy == name);
        let tensors = Tensors::open(folder, &shape.parameters(words, head, task), is_unused, device)?;
        let reader = Reader { tensors: &tensors, prefix: &shape.prefix, epsilon };
        let layer = |index: usize| {
            let block = format!("encoder.block.{index}.layer");
            Ok(Layer {
                attention: reader.attention(&format!("{block}.0"), "SelfAttention")?,
                feed_forward: reader.feed_forward(&format!("{block}.1"))?,
            })
        };
        let words = tensors.tensor(&name(words))?;
        let head = match task {
            Task::FirstToken => Head::Classifier(tensors.linear(&shape.classifier())?),
            Task::FirstStep(answers) => {
                let matrix = head.map_or_else(|| Ok(words.clone()), |head| tensors.tensor(head))?;
                let rows = indices(answers.into_iter().map(index).collect(), device);
                // As transformers 5 reads the key: only a `false` in the file leaves the states as they are.
                let is_scaled = config.value("tie_word_embeddings") != Some(&Value::Bool(false));
                let scale = if is_scaled { (shape.width as f64).powf(-0.5) } else { 1.0 };
                Head::Decoder(reader.decoder(shape.decoder_layers, matrix.select(0, rows), scale)?)
            }
        };
        Ok(Self {
            words,
            bias: reader.tensor("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight")?,
            max_distance,
            layers: (0..shape.layers).map(layer).collect::<Result<_, Error>>()?,
            final_norm: reader.norm("encoder.final_layer_norm")?,
            head,
        })
    }

    pub(crate) fn vocabulary(&self) -> usize {
        self.words.dims()[0]
    }

    /// # Shapes
    /// The result: `[B, C]`.
    pub(crate) fn logits(&self, batch: &Batch) -> Tensor<2> {
        let heads = self.bias.dims()[1];
        let view = View::with_bias(batch, self.by_distance(batch.longest));
        let mut x = self.words.clone().select(0, batch.ids.clone());
        for Layer { attention, feed_forward } in &self.layers {
            let read = attention.norm.forward(x.clone());
            let query = batch.by_head(attention.query.apply(read.clone()), heads);
            let key = batch.by_head(attention.key.apply(read.clone()), heads);
            let value = batch.by_head(attention.value.apply(read), heads);
            x = x + attention.output.apply(batch.by_row(view.attend(&query, key, &value)));
            x = feed_forward.forward(x);
        }
        let states = self.final_norm.forward(x);
        match &self.head {
            Head::Classifier(classifier) => classifier.apply(states.select(0, batch.first_rows())),
            Head::Decoder(decoder) => decoder.first_step(&self.words, &states, batch, heads),
        }
    }

    /// The bias of the distances `1 - longest..longest`, key minus query, `[2·longest - 1, H]`.
    fn by_distance(&self, longest: usize) -> Tensor<2> {
        let [buckets, _] = self.bias.dims();
        let last = i64::try_from(longest).expect("texts in memory") - 1;
        let rows = (-last..=last).map(|distance| bucket(distance, buckets, self.max_distance)).collect();
        self.bias.clone().select(0, indices(rows, &self.bias.device()))
    }
}

/// The bucket of a distance: half of them for keys behind the query, of each half one for each of the nearest, the rest by
/// logarithm (`T5Attention._relative_position_bucket` in transformers).
fn bucket(distance: i64, buckets: usize, max_distance: usize) -> i32 {
    let side = buckets / 2;
    let exact = side / 2;
    let far = usize::try_from(distance.unsigned_abs()).unwrap_or(usize::MAX);
    let of_side = if far < exact {
        far
    } else {
        // In 32 bits and in this order, as transformers has it: at a border the last bit decides.
        let ratio = (far as f32 / exact as f32).ln() / (max_distance as f64 / exact as f64).ln() as f32;
        (exact + (ratio * (side - exact) as f32) as usize).min(side - 1)
    };
    index(of_side + if distance > 0 { side } else { 0 })
}

/// Parts by their names below a prefix.
struct Reader<'a> {
    tensors: &'a Tensors,
    prefix: &'a str,
    epsilon: f64,
}

impl Reader<'_> {
    fn tensor(&self, name: &str) -> Result<Tensor<2>, Error> {
        Ok(self.tensors.tensor(&format!("{}{name}", self.prefix))?)
    }

    fn linear(&self, name: &str) -> Result<Linear, Error> {
        Ok(self.tensors.linear(&format!("{}{name}", self.prefix))?)
    }

    fn norm(&self, name: &str) -> Result<Norm, Error> {
        Ok(self.tensors.rms_norm(&format!("{}{name}", self.prefix), self.epsilon)?)
    }

    fn attention(&self, layer: &str, name: &str) -> Result<Attention, Error> {
        Ok(Attention {
            norm: self.norm(&format!("{layer}.layer_norm"))?,
            query: self.linear(&format!("{layer}.{name}.q"))?,
            key: self.linear(&format!("{layer}.{name}.k"))?,
            value: self.linear(&format!("{layer}.{name}.v"))?,
            output: self.linear(&format!("{layer}.{name}.o"))?,
        })
    }

    fn feed_forward(&self, layer: &str) -> Result<FeedForward, Error> {
        Ok(FeedForward {
            norm: self.norm(&format!("{layer}.layer_norm"))?,
            gate: self.linear(&format!("{layer}.DenseReluDense.wi_0"))?,
            up: self.linear(&format!("{layer}.DenseReluDense.wi_1"))?,
            down: self.linear(&format!("{layer}.DenseReluDense.wo"))?,
        })
    }

    fn decoder(&self, layers: usize, answers: Tensor<2>, scale: f64) -> Result<Decoder, Error> {
        let layer = |index: usize| {
            let block = format!("decoder.block.{index}.layer");
            Ok(DecoderLayer {
                norm: self.norm(&format!("{block}.0.layer_norm"))?,
                value: self.linear(&format!("{block}.0.SelfAttention.v"))?,
                output: self.linear(&format!("{block}.0.SelfAttention.o"))?,
                cross: self.attention(&format!("{block}.1"), "EncDecAttention")?,
                feed_forward: self.feed_forward(&format!("{block}.2"))?,
            })
        };
        let final_norm = self.norm("decoder.final_layer_norm")?;
        let layers = (0..layers).map(layer).collect::<Result<_, Error>>()?;
        Ok(Decoder { layers, final_norm, answers, scale })
    }
}

impl FeedForward {
    /// # Shapes
    /// `x` and the result: `[N, D]`.
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let read = self.norm.forward(x.clone());
        let gate = Activation::GeluTanh.apply(self.gate.apply(read.clone()));
        x + self.down.apply(gate * self.up.apply(read))
    }
}

impl Decoder {
    /// # Shapes
    /// `words`: `[V, D]`; `states`: `[N, D]`; the result: `[B, C]`.
    fn first_step(&self, words: &Tensor<2>, states: &Tensor<2>, batch: &Batch, heads: usize) -> Tensor<2> {
        let texts = batch.lengths.len();
        let ids = Tensor::<1, Int>::from_data(TensorData::new(vec![START; texts], [texts]), batch.device());
        let mut x = words.clone().select(0, ids);
        let mask = ends(batch);
        for DecoderLayer { norm, value, output, cross, feed_forward } in &self.layers {
            x = x.clone() + output.apply(value.apply(norm.forward(x)));
            let query = cross.query.apply(cross.norm.forward(x.clone()));
            let inner = query.dims()[1];
            let query = query.reshape([texts, heads, 1, inner / heads]);
            let key = batch.by_head(cross.key.apply(states.clone()), heads);
            let value = batch.by_head(cross.value.apply(states.clone()), heads);
            let scores = query.matmul(key.swap_dims(2, 3)) + mask.clone();
            let mixed = burn::tensor::activation::softmax(scores, 3).matmul(value);
            x = x + cross.output.apply(mixed.reshape([texts, inner]));
            x = feed_forward.forward(x);
        }
        let x = self.final_norm.forward(x) * self.scale;
        x.matmul(self.answers.clone().transpose())
    }
}

/// What hides the keys behind the end of each text, `[B, 1, 1, T]`.
fn ends(batch: &Batch) -> Tensor<4> {
    let longest = batch.longest;
    let row =
        |&length: &usize| (0..longest).map(move |key| if key < length { 0.0 } else { f32::NEG_INFINITY });
    let values: Vec<f32> = batch.lengths.iter().flat_map(row).collect();
    Tensor::from_data(TensorData::new(values, [batch.lengths.len(), 1, 1, longest]), batch.device())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of transformers' function with 32 buckets and 128 as the greatest distance.
    #[test]
    fn distances_have_their_buckets() {
        let of = |distance| bucket(distance, 32, 128);
        assert_eq!([0, -1, -7, -8, -11, -12, -16, -127, -4000].map(of), [0, 1, 7, 8, 8, 9, 10, 15, 15]);
        assert_eq!([1, 7, 8, 64, 127, 128].map(of), [17, 23, 24, 30, 31, 31]);
    }
}
