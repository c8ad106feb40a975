//! ModernBERT with a classifier of tokens or of the text: pre-norm layers, rotary positions, most layers with a window (arXiv 2412.13663).
//!
//! Legend: B texts, N tokens of all, D model width, H heads, E head width, C classes.

use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use serde_json::{Value, json};
use softshard_model::{Activation, Linear, Norm, Tensors};

use crate::Error;
use crate::attention::View;
use crate::batch::Batch;
use crate::config::Config;

/// What the classifier reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reads {
    /// Each token.
    Tokens,
    /// The first token.
    First,
    /// The mean of all tokens.
    Mean,
}

/// An encoder with a classifier.
pub(crate) struct ModernBert {
    words: Tensor<2>,
    norm: Norm,
    layers: Vec<Layer>,
    final_norm: Norm,
    head: Linear,
    head_norm: Norm,
    classifier: Linear,
    reads: Reads,
    heads: usize,
    limit: usize,
    /// How far a token sees in layers with a window.
    window: usize,
    /// Base of the rotary angles in layers without a window, and with it.
    thetas: [f64; 2],
}

struct Layer {
    /// Absent in the first layer.
    attention_norm: Option<Norm>,
    qkv: Linear,
    output: Linear,
    norm: Norm,
    /// The part that is activated, then its factor.
    up: Linear,
    down: Linear,
    has_window: bool,
}

/// What layers of one kind share in a batch.
struct Kind {
    view: View,
    angles: Angles,
}

/// Cosines and sines of each token, `[N, 1, E/2]`.
struct Angles {
    cos: Tensor<3>,
    sin: Tensor<3>,
}

/// Which layers have a window: `layer_types`, or in older files every layer but each n-th.
fn windows(config: &Config, layers: usize) -> Result<Vec<bool>, Error> {
    let Some(types) = config.value("layer_types") else {
        let step = config.optional_size("global_attn_every_n_layers")?.unwrap_or(3);
        return Ok((0..layers).map(|index| index % step != 0).collect());
    };
    let has_window = |kind: &Value| match kind.as_str() {
        Some("sliding_attention") => Some(true),
        Some("full_attention") => Some(false),
        _ => None,
    };
    let list: Option<Vec<bool>> = types.as_array().and_then(|list| list.iter().map(has_window).collect());
    list.filter(|list| list.len() == layers).ok_or_else(|| {
        config.bad("layer_types", format!("{layers} of `full_attention` and `sliding_attention`"), types)
    })
}

/// The base of rotary angles: in `rope_parameters`, or in older files under a key of its own.
fn theta(config: &Config, kind: &str, older: &str, default: f64) -> Result<f64, Error> {
    let Some(parameters) = config.value("rope_parameters").and_then(|all| all.get(kind)) else {
        return config.number(older, default);
    };
    if let Some(other) = parameters.get("rope_type").filter(|name| *name != "default") {
        return Err(config.bad("rope_parameters", "`rope_type` default", other));
    }
    match parameters.get("rope_theta") {
        None => config.number(older, default),
        Some(value) => value
            .as_f64()
            .filter(|theta| theta.is_finite() && *theta > 0.0)
            .ok_or_else(|| config.bad("rope_parameters", "`rope_theta` above 0", value)),
    }
}

fn parameters(width: usize, inner: usize, layers: usize, sizes: [usize; 2]) -> Vec<(String, Vec<usize>)> {
    let [vocabulary, classes] = sizes;
    let mut list = vec![
        ("model.embeddings.tok_embeddings.weight".to_owned(), vec![vocabulary, width]),
        ("head.dense.weight".to_owned(), vec![width, width]),
        ("classifier.weight".to_owned(), vec![classes, width]),
        ("classifier.bias".to_owned(), vec![classes]),
    ];
    let mut norms = ["model.embeddings.norm", "model.final_norm", "head.norm"].map(str::to_owned).to_vec();
    for index in 0..layers {
        let name = |part: &str| format!("model.layers.{index}.{part}");
        list.push((name("attn.Wqkv.weight"), vec![3 * width, width]));
        list.push((name("attn.Wo.weight"), vec![width, width]));
        list.push((name("mlp.Wi.weight"), vec![2 * inner, width]));
        list.push((name("mlp.Wo.weight"), vec![width, inner]));
        norms.push(name("mlp_norm"));
        if index > 0 {
            norms.push(name("attn_norm"));
        }
    }
    list.extend(norms.into_iter().map(|norm| (format!("{norm}.weight"), vec![width])));
    list
}

impl ModernBert {
    /// # Errors
    /// The configuration has settings of another model, or the tensors are not those that it describes.
    pub(crate) fn load(
        folder: &Path,
        config: &Config,
        of_tokens: bool,
        device: &Device,
    ) -> Result<Self, Error> {
        for key in ["hidden_activation", "classifier_activation"] {
            config.only(key, &json!("gelu"))?;
        }
        for key in ["norm_bias", "attention_bias", "mlp_bias", "classifier_bias"] {
            config.only(key, &json!(false))?;
        }
        let reads = match config.value("classifier_pooling").map(|name| name.as_str().unwrap_or_default()) {
            _ if of_tokens => Reads::Tokens,
            None | Some("cls") => Reads::First,
            Some("mean") => Reads::Mean,
            Some(other) => return Err(config.bad("classifier_pooling", "`cls` or `mean`", other)),
        };
        let (width, inner) = (config.size("hidden_size")?, config.size("intermediate_size")?);
        let (layers, heads) =
            (config.size("num_hidden_layers")?, config.heads("num_attention_heads", width)?);
        if !(width / heads).is_multiple_of(2) {
            return Err(config.bad("num_attention_heads", "heads of an even width", width / heads));
        }
        let epsilon = config.number("norm_eps", 1e-5)?;
        let sizes = [config.size("vocab_size")?, config.classes()?];
        let windows = windows(config, layers)?;
        let list = parameters(width, inner, layers, sizes);
        let tensors = Tensors::open(folder, &list, |name| name.starts_with("decoder."), device)?;
        let norm = |name: &str| tensors.layer_norm(name, epsilon);
        let layer = |(index, has_window): (usize, bool)| {
            let name = |part: &str| format!("model.layers.{index}.{part}");
            Ok(Layer {
                attention_norm: (index > 0).then(|| norm(&name("attn_norm"))).transpose()?,
                qkv: tensors.linear(&name("attn.Wqkv"))?,
                output: tensors.linear(&name("attn.Wo"))?,
                norm: norm(&name("mlp_norm"))?,
                up: tensors.linear(&name("mlp.Wi"))?,
                down: tensors.linear(&name("mlp.Wo"))?,
                has_window,
            })
        };
        Ok(Self {
            words: tensors.tensor("model.embeddings.tok_embeddings.weight")?,
            norm: norm("model.embeddings.norm")?,
            layers: windows.into_iter().enumerate().map(layer).collect::<Result<_, Error>>()?,
            final_norm: norm("model.final_norm")?,
            head: tensors.linear("head.dense")?,
            head_norm: norm("head.norm")?,
            classifier: tensors.linear("classifier")?,
            reads,
            heads,
            limit: config.optional_size("max_position_embeddings")?.unwrap_or(8192),
            window: config.optional_size("local_attention")?.unwrap_or(128) / 2,
            thetas: [
                theta(config, "full_attention", "global_rope_theta", 160_000.0)?,
                theta(config, "sliding_attention", "local_rope_theta", 10_000.0)?,
            ],
        })
    }

    pub(crate) fn vocabulary(&self) -> usize {
        self.words.dims()[0]
    }

    /// Whether it has classes of each token, not of the text.
    pub(crate) fn reads_tokens(&self) -> bool {
        self.reads == Reads::Tokens
    }

    /// The most tokens that a text may have.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// # Shapes
    /// The result: `[N, C]` of tokens, `[B, C]` of texts.
    pub(crate) fn logits(&self, batch: &Batch) -> Tensor<2> {
        let width = self.words.dims()[1] / self.heads;
        let kinds = [(None, self.thetas[0]), (Some(self.window), self.thetas[1])].map(|(window, theta)| {
            Kind { view: View::new(batch, window), angles: Angles::new(batch, theta, width) }
        });
        let mut x = self.norm.forward(self.words.clone().select(0, batch.ids.clone()));
        for layer in &self.layers {
            x = layer.forward(x, batch, &kinds[usize::from(layer.has_window)], self.heads);
        }
        let x = self.final_norm.forward(x);
        let read = match self.reads {
            Reads::Tokens => x,
            Reads::First => x.select(0, batch.first_rows()),
            Reads::Mean => batch.means(x),
        };
        self.classifier.apply(self.head_norm.forward(Activation::Gelu.apply(self.head.apply(read))))
    }
}

impl Layer {
    /// # Shapes
    /// `x` and the result: `[N, D]`.
    fn forward(&self, x: Tensor<2>, batch: &Batch, kind: &Kind, heads: usize) -> Tensor<2> {
        let [rows, width] = x.dims();
        let read = match &self.attention_norm {
            Some(norm) => norm.forward(x.clone()),
            None => x.clone(),
        };
        let all = self.qkv.apply(read);
        let part = |index: usize| all.clone().narrow(1, index * width, width);
        let turn =
            |x: Tensor<2>| kind.angles.turn(x.reshape([rows, heads, width / heads])).reshape([rows, width]);
        let scale = ((width / heads) as f64).powf(-0.5);
        let query = batch.by_head(turn(part(0)) * scale, heads);
        let key = batch.by_head(turn(part(1)), heads);
        let value = batch.by_head(part(2), heads);
        let x = x + self.output.apply(batch.by_row(kind.view.attend(&query, key, &value)));
        let both = self.up.apply(self.norm.forward(x.clone()));
        let inner = both.dims()[1] / 2;
        let gated = Activation::Gelu.apply(both.clone().narrow(1, 0, inner)) * both.narrow(1, inner, inner);
        x + self.down.apply(gated)
    }
}

impl Angles {
    fn new(batch: &Batch, theta: f64, width: usize) -> Self {
        let half = width / 2;
        // In 32 bits, as transformers has them: at far positions the last bit of a frequency shows.
        let frequencies: Vec<f32> =
            (0..half).map(|pair| theta.powf(-2.0 * pair as f64 / width as f64) as f32).collect();
        let positions = batch.positions();
        let angles: Vec<f32> = positions
            .iter()
            .flat_map(|&place| frequencies.iter().map(move |frequency| place as f32 * frequency))
            .collect();
        let tensor = |function: fn(f32) -> f32| {
            let values: Vec<f32> = angles.iter().map(|&angle| function(angle)).collect();
            Tensor::from_data(TensorData::new(values, [positions.len(), 1, half]), batch.device())
        };
        Self { cos: tensor(f32::cos), sin: tensor(f32::sin) }
    }

    /// Turns both halves of each head.
    ///
    /// # Shapes
    /// `x` and the result: `[N, H, E]`.
    fn turn(&self, x: Tensor<3>) -> Tensor<3> {
        let half = x.dims()[2] / 2;
        let (left, right) = (x.clone().narrow(2, 0, half), x.narrow(2, half, half));
        let turned_left = left.clone() * self.cos.clone() - right.clone() * self.sin.clone();
        let turned_right = right * self.cos.clone() + left * self.sin.clone();
        Tensor::cat(vec![turned_left, turned_right], 2)
    }
}
