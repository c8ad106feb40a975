//! What the tests of this crate share: a small tokenizer, data files, and the real data where it is present.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde_json::{Value, json};
use softshard_labels::{Sequence, SequenceDataset};
use softshard_prepare::{DataConfig, Error, Split, Summary, Tokenizer, TokenizerConfig, demo, run};

/// A temporary folder with a tokenizer in which every byte of plain text is one token at most.
pub(crate) struct Workshop {
    pub(crate) folder: tempfile::TempDir,
}

impl Workshop {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let rows = folder.path().join("rows.jsonl");
        demo::generate(1, 20, &rows).unwrap();
        demo::train_tokenizer(&rows, 257, &folder.path().join("tokenizer")).unwrap();
        Self { folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs_err::write(&path, bytes).unwrap();
        path
    }

    /// Changes `tokenizer_config.json`.
    pub(crate) fn set_tokenizer(&self, name: &str, value: Value) {
        self.set("tokenizer/tokenizer_config.json", name, value);
    }

    /// Makes the post-processor put the beginning-of-sequence token before a text.
    pub(crate) fn begin_with_bos(&self) {
        let token = "<|endoftext|>";
        let bos = json!({ "SpecialToken": { "id": token, "type_id": 0 } });
        let [one, other] = ["A", "B"].map(|id| json!({ "Sequence": { "id": id, "type_id": 0 } }));
        let id = self.tokenizer().bos().unwrap();
        let processor = json!({
            "type": "TemplateProcessing", "single": [bos, one], "pair": [bos, one, other],
            "special_tokens": { token: { "id": token, "ids": [id], "tokens": [token] } },
        });
        self.set("tokenizer/tokenizer.json", "post_processor", processor);
    }

    fn set(&self, file: &str, name: &str, value: Value) {
        let path = self.path(file);
        let mut config: Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
        config[name] = value;
        fs_err::write(&path, config.to_string()).unwrap();
    }

    pub(crate) fn tokenizer(&self) -> Tokenizer {
        Tokenizer::load(&self.path("tokenizer")).unwrap()
    }

    pub(crate) fn tokenizer_config(&self) -> TokenizerConfig {
        tokenizer_config(&self.path("tokenizer"))
    }

    pub(crate) fn run(&self, data: &DataConfig) -> Result<Summary, Error> {
        run(data, &self.tokenizer_config(), &self.path("sequences"), &AtomicBool::new(false), &())
    }

    pub(crate) fn sequences(&self, split: Split) -> Vec<Sequence> {
        SequenceDataset::open(self.path("sequences").join(split.name())).unwrap().read_all().unwrap()
    }
}

pub(crate) fn tokenizer_config(path: &Path) -> TokenizerConfig {
    serde_json::from_value(json!({ "path": path })).unwrap()
}

/// A `[data]` section: `fields` over generous limits for a tokenizer of bytes.
pub(crate) fn data_config(fields: Value) -> DataConfig {
    let mut all = json!({ "max_prompt_tokens": 1000, "max_tokens": 2000 });
    for (name, value) in fields.as_object().unwrap() {
        all[name] = value.clone();
    }
    serde_json::from_value(all).unwrap()
}

pub(crate) use softshard_e2e::real_data;
