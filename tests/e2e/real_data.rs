//! Real input: a trained model, real text and instructions, whenever they lie beside the checkout.

use std::{fs, path::Path};

use softshard_e2e::{real_data, root, softshard};

/// A smaller student for the tokenizer of stories260K.
const STUDENT: &str = r#"{
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 512, "hidden_size": 32,
  "intermediate_size": 88, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
  "hidden_act": "silu", "max_position_embeddings": 512, "initializer_range": 0.02, "rms_norm_eps": 1e-5,
  "rope_theta": 10000.0, "tie_word_embeddings": true
}"#;

/// The recipe of stories260K as the teacher over `data`.
fn recipe(folder: &Path, real: &Path, data: &str) -> String {
    let real = real.display();
    let text = format!(
        r#"
[data]
{data}
split = {{ valid_fraction = 0.1, seed = 1 }}
[tokenizer]
path = "{real}/stories260k/hf"
[teacher]
model = "{real}/stories260k/hf"
[labels]
selection = {{ kind = "top_k", k = 32 }}
mantissa_bits = 12
sequences_per_shard = 100
[student]
model = "student"
init = "random"
epochs = 1
learning_rate = 3e-3
max_tokens_per_batch = 2048
[evaluate]
split = "valid"
max_answers = 8
max_new_tokens = 32
[output]
dir = "run"
"#
    );
    fs::create_dir(folder.join("student")).expect("a folder is made");
    fs::write(folder.join("student/config.json"), STUDENT).expect("the student's shape is written");
    fs::write(folder.join("recipe.toml"), text).expect("the recipe is written");
    folder.join("recipe.toml").to_str().expect("ASCII").to_owned()
}

/// The held-out scores that `evaluate` wrote under `name`.
fn held_out(folder: &Path, name: &str) -> serde_json::Value {
    let bytes =
        fs::read(folder.join(format!("run/evaluations/{name}/held_out.json"))).expect("scores are written");
    let scores: serde_json::Value = serde_json::from_slice(&bytes).expect("scores are JSON");
    scores["held_out"].clone()
}

fn all_stages(recipe: &str, real: &Path) {
    for stage in ["prepare", "teacher-labels", "train-student", "evaluate"] {
        softshard(&[stage, recipe]).succeeded();
    }
    let teacher = format!("evaluate.model={}/stories260k/hf", real.display());
    softshard(&["evaluate", recipe, "--set", &teacher, "--set", "evaluate.name=teacher"]).succeeded();
}

#[test]
fn stories260k_teaches_tinystories() {
    let Some(real) = real_data() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = format!(
        "text = \"{}/corpora/tinystories_sample_2MiB.txt\"\nlimit = 400\nmax_tokens = 256",
        real.display()
    );
    let recipe = recipe(folder.path(), &real, &data);
    all_stages(&recipe, &real);
    let (teacher, student) = (held_out(folder.path(), "teacher"), held_out(folder.path(), "student-valid"));
    let number = |scores: &serde_json::Value, key: &str| scores[key].as_f64().expect("a number");
    // transformers 5.23 gives 1.48637 for these sequences (the rare end-of-text included); off means a wrong position.
    assert!((number(&teacher, "nll") - 1.48637).abs() < 1e-4, "teacher: {teacher}");
    assert!(number(&teacher, "kl_to_teacher") < 1e-5, "a teacher is at no distance from itself: {teacher}");
    assert!(number(&student, "nll") < 512f64.ln(), "the student learnt something: {student}");
    assert!(number(&student, "kl_to_teacher") > 0.1, "student: {student}");
}

#[test]
fn stories260k_labels_dolly_prompts() {
    let Some(real) = real_data() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = format!(
        "instructions = \"{}/dolly/databricks-dolly-15k.jsonl\"\nlimit = 300\nmax_prompt_tokens = 300\nmax_tokens = 512",
        real.display()
    );
    let recipe = recipe(folder.path(), &real, &data);
    all_stages(&recipe, &real);
    let teacher = held_out(folder.path(), "teacher");
    assert!(teacher["kl_to_teacher"].as_f64().expect("a number") < 1e-5, "{teacher}");
}

#[test]
fn dolly_goes_through_the_qwen_tokenizer() {
    let Some(real) = real_data() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let text = format!(
        "[data]\ninstructions = \"{0}/dolly/databricks-dolly-15k.jsonl\"\nempty_responses = \"drop\"\nsplit = {{ valid_rows = 1000 }}\n\
         [tokenizer]\npath = \"{0}/tokenizers/qwen2.5\"\n[output]\ndir = \"run\"\n",
        real.display()
    );
    fs::write(folder.path().join("recipe.toml"), text).expect("the recipe is written");
    let said =
        softshard(&["prepare", folder.path().join("recipe.toml").to_str().expect("ASCII")]).succeeded();
    let manifest = fs::read(folder.path().join("run/sequences/train/manifest.json")).expect("a manifest");
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("JSON");
    let rows = manifest["rows"].as_u64().expect("a number");
    assert!((12_000..14_011).contains(&rows), "{rows} rows\n{}", said.stdout);
}

/// Covers every configuration beside the checkout: it is understood, and has the parameters that transformers counts.
#[test]
fn real_configurations_have_the_parameters_that_transformers_counts() {
    let Some(real) = real_data() else { return };
    let golden =
        fs::read(root().join("tests/peers/golden/parameters.json")).expect("the golden file is there");
    let golden: serde_json::Value = serde_json::from_slice(&golden).expect("JSON");
    let golden = golden["models"].as_object().expect("models by name");
    assert_eq!(golden.len(), 14);
    let files: Vec<String> =
        golden.keys().map(|name| real.join(format!("configs/{name}.json")).display().to_string()).collect();
    let inspect = |json: Option<&str>| {
        let arguments = ["model", "inspect"].into_iter().chain(files.iter().map(String::as_str)).chain(json);
        softshard(&arguments.collect::<Vec<_>>()).succeeded().stdout
    };
    let table = inspect(None);
    let found: serde_json::Value = serde_json::from_str(&inspect(Some("--json"))).expect("JSON");
    for ((name, expected), found) in golden.iter().zip(found.as_array().expect("a list")) {
        assert_eq!(found["parameters"], expected["parameters"], "{name}");
        assert_eq!(found["parameters_of_layer"], expected["layer"], "{name}");
        assert_eq!(found["tied"], expected["tied"], "{name}");
    }
    for part in
        ["Llama-3.1-70B.json", "70,553,706,496", "rope 500,000, llama3 ×32", "32,763,876,352", "learned"]
    {
        assert!(table.contains(part), "{part}:\n{table}");
    }
}
