//! Files as their authors published them: other names, buffers that are no weights, heads stored twice.

use std::fs;

use burn::tensor::Device;
use safetensors::{Dtype, SafeTensors, serialize, tensor::TensorView};
use softshard_model::Decoder;

use crate::golden::{Golden, batch, load, logits, path};

/// A buffer of every layer, its type and its shape.
type Buffer = (&'static str, Dtype, &'static [usize]);

/// A golden model with other names, buffers of both layers, and one tensor twice.
struct Published {
    model: &'static str,
    rename: fn(&str) -> String,
    buffers: &'static [Buffer],
    /// What is stored again, and under which name.
    twice: Option<[&'static str; 2]>,
}

fn unchanged(name: &str) -> String {
    name.to_owned()
}

const PUBLISHED: [Published; 4] = [
    // openai-community/gpt2
    Published {
        model: "tiny-gpt2",
        rename: |name| name.trim_start_matches("transformer.").to_owned(),
        buffers: &[("h.{}.attn.bias", Dtype::F32, &[1, 1, 64, 64])],
        twice: None,
    },
    // EleutherAI/pythia-*
    Published {
        model: "tiny-neox",
        rename: unchanged,
        buffers: &[
            ("gpt_neox.layers.{}.attention.bias", Dtype::BOOL, &[1, 1, 64, 64]),
            ("gpt_neox.layers.{}.attention.masked_bias", Dtype::F16, &[]),
            ("gpt_neox.layers.{}.attention.rotary_emb.inv_freq", Dtype::F32, &[2]),
        ],
        twice: None,
    },
    // facebook/opt-*
    Published {
        model: "tiny-opt-post-norm",
        rename: |name| name.trim_start_matches("model.").to_owned(),
        buffers: &[],
        twice: Some(["model.decoder.embed_tokens.weight", "lm_head.weight"]),
    },
    // Llama in files of older versions, with a head that is tied and stored all the same.
    Published {
        model: "tiny-llama3",
        rename: unchanged,
        buffers: &[("model.layers.{}.self_attn.rotary_emb.inv_freq", Dtype::F32, &[4])],
        twice: Some(["model.embed_tokens.weight", "lm_head.weight"]),
    },
];

#[test]
fn published_files_hold_the_same_models() {
    for Published { model, rename, buffers, twice } in PUBLISHED {
        let folder = tempfile::tempdir().expect("a folder");
        fs::copy(path(&format!("{model}/config.json")), folder.path().join("config.json")).expect("a copy");
        let bytes = fs::read(path(&format!("{model}/model.safetensors"))).expect("golden weights");
        let golden = SafeTensors::deserialize(&bytes).expect("safetensors");
        let mut tensors: Vec<(String, TensorView<'_>)> =
            golden.iter().map(|(name, view)| (rename(name), view)).collect();
        if let Some([from, to]) = twice {
            tensors.push((to.to_owned(), golden.tensor(from).expect("a tensor")));
        }
        let zeros = vec![0; 4 * 64 * 64];
        for (name, dtype, shape) in buffers {
            let size = shape.iter().product::<usize>() * dtype.bitsize() / 8;
            for layer in ["0", "1"] {
                let view = TensorView::new(*dtype, shape.to_vec(), &zeros[..size]).expect("a tensor");
                tensors.push((name.replace("{}", layer), view));
            }
        }
        let bytes = serialize(tensors, None).expect("safetensors");
        fs::write(folder.path().join("model.safetensors"), bytes).expect("a file");

        let published =
            Decoder::load(folder.path(), &Device::flex()).unwrap_or_else(|error| panic!("{model}: {error}"));
        let sequences = Golden::of(model).facts.sequences;
        let all = |decoder: &Decoder| {
            logits(decoder, decoder.hidden(batch(&sequences[1..2], sequences[1].len(), |_| 0)))
        };
        assert_eq!(all(&published), all(&load(model)), "{model}");
    }
}
