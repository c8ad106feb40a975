//! Saves models and adapters as we write them, with the logits they give: `tests/peers/check_saved.py` lets transformers and
//! PEFT read them.
//!
//! `save_for_peers OUT MODEL_DIR...` writes for each model `OUT/NAME/model`, two adapters `OUT/NAME/all` (every linear map)
//! and `OUT/NAME/some` (two by name), and `OUT/NAME/logits.json`.

use std::collections::BTreeSet;
use std::path::Path;

use burn::tensor::{Device, Int, Tensor, TensorData};
use softshard_model::{Decoder, LoraConfig, Trainable};

const TOKENS: usize = 12;

/// Logits of all positions, one row after the other.
fn logits(decoder: &Decoder, ids: &[i32]) -> Result<Vec<f32>, Box<dyn std::error::Error>> {
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids.to_vec(), [1, ids.len()]), &Device::flex());
    let hidden = decoder.hidden(ids)?;
    let [_, tokens, width] = hidden.dims();
    Ok(hidden.reshape([tokens, width]).matmul(decoder.head().transpose()).try_into_vec_as()?)
}

/// A LoRA whose B is not zero, so that it changes the model.
fn adapted(
    base: &Decoder,
    target_modules: Vec<String>,
    rslora: bool,
) -> Result<Decoder, Box<dyn std::error::Error>> {
    let mut decoder = base.clone();
    decoder.attach_lora(&LoraConfig { r: 2, alpha: 3.0, dropout: 0.1, target_modules, rslora }, 7)?;
    decoder.train(Trainable::Adapter);
    for (index, (_, tensor)) in decoder.parameters_mut().into_iter().enumerate() {
        let [rows, columns] = tensor.dims();
        let values: Vec<f32> =
            (0..rows * columns).map(|i| ((i * 37 + index * 11) % 17) as f32 / 34.0 - 0.25).collect();
        *tensor = Tensor::from_data(TensorData::new(values, [rows, columns]), &Device::flex());
    }
    decoder.train(Trainable::Nothing);
    Ok(decoder)
}

/// The first and the last kind of linear map: `h.0.attn.c_attn.lora_A.weight` is of the kind `c_attn`.
fn two_kinds(decoder: &Decoder) -> Result<Vec<String>, Box<dyn std::error::Error>> {
    let mut all = adapted(decoder, vec!["all-linear".into()], false)?;
    all.train(Trainable::Adapter);
    let names: Vec<String> = all.parameters_mut().into_iter().map(|(name, _)| name).collect();
    let kind = |name: &String| name.rsplit('.').nth(2).map(str::to_owned);
    let ends: BTreeSet<String> =
        [names.first(), names.last()].into_iter().flatten().filter_map(kind).collect();
    Ok(ends.into_iter().collect())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (out, models) = arguments.split_first().ok_or("usage: save_for_peers OUT MODEL_DIR...")?;
    for model in models {
        let model = Path::new(model);
        let decoder = Decoder::load(model, &Device::flex())?;
        let folder = Path::new(out).join(model.file_name().ok_or("expected a folder with a name")?);
        let saved = folder.join("model");
        std::fs::create_dir_all(&saved)?;
        decoder.save(&saved)?;
        let vocabulary = decoder.config().vocab_size;
        let ids: Vec<i32> =
            (0..TOKENS).map(|i| i32::try_from(3 + i * 29 % (vocabulary - 3))).collect::<Result<_, _>>()?;
        let mut expected = serde_json::json!({ "ids": ids, "model": logits(&decoder, &ids)? });
        let targets = [("all", vec!["all-linear".into()], true), ("some", two_kinds(&decoder)?, false)];
        for (name, target_modules, rslora) in targets {
            let decoder = adapted(&decoder, target_modules, rslora)?;
            std::fs::create_dir_all(folder.join(name))?;
            decoder.save_adapter(&folder.join(name), &saved.to_string_lossy())?;
            expected[name] = logits(&decoder, &ids)?.into();
        }
        std::fs::write(folder.join("logits.json"), expected.to_string())?;
    }
    Ok(())
}
