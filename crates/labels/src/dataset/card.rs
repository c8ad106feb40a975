//! The dataset card: lets `load_dataset` of Hugging Face open the shards, and a person see what they are.

use super::manifest::LabelsManifest;
use crate::values::{Selection, visible_line};

/// `README.md` of a finished label dataset.
pub(crate) fn of(manifest: &LabelsManifest) -> String {
    let plan = &manifest.plan;
    let quote = |text: &str| serde_json::to_string(text).expect("a text");
    let files: String = manifest
        .shards
        .iter()
        .map(|shard| format!("    - {}\n", quote(&format!("data/{}", shard.file))))
        .collect();
    let selection = match &plan.selection {
        Selection::TopK { k } => format!("the {k} most probable tokens"),
        Selection::TopP { p, k } => format!("the most probable tokens up to a mass of {p}, at most {k}"),
        Selection::Sampled { draws } => format!("the tokens of {draws} draws, with their counts,"),
        Selection::TopKSampled { k, draws } => {
            format!("the {k} most probable tokens and {draws} draws from the others")
        }
    };
    let log_probs = match (&plan.selection, plan.teacher.has_approximate_tail()) {
        (Selection::Sampled { .. }, _) => {
            "A count divided by the number of draws estimates the probability of its token over the full vocabulary."
        }
        (_, true) => {
            "Log-probabilities are over the full vocabulary, as other software wrote them: rounded or fitted. The mass that \
             was cut off was computed of them and is approximate."
        }
        (_, false) if !plan.teacher.is_verified() => {
            "Log-probabilities are over the full vocabulary, never renormalised, as other software wrote them; the mass that \
             was cut off is theirs or computed of them, and not verified."
        }
        _ => {
            "Log-probabilities are over the full vocabulary, never renormalised; the mass that was cut off is exact."
        }
    };
    format!(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: {split}\n    path:\n{files}\
         tags:\n- softshard\n- knowledge-distillation\n---\n\
         # Teacher labels\n\n\
         Soft labels for knowledge distillation: at each labelled position {selection} of the teacher. {log_probs}\n\n\
         | | |\n|---|---|\n\
         | sequences | {rows} |\n| tokens | {input_tokens} |\n| labelled tokens | {labelled_tokens} |\n\
         | prompt template | {template} |\n| {of_weights} | `{weights}` |\n\
         | teacher vocabulary | {vocabulary} |\n| mantissa bits of `log_probs` | {bits} |\n\n\
         `manifest.json` has the hashes of all files and everything the labels depend on. The columns are described in \
         `docs/label-format.md` of softshard.\n",
        split = quote(&plan.split),
        rows = manifest.rows,
        input_tokens = manifest.input_tokens,
        labelled_tokens = manifest.labelled_tokens,
        of_weights = if plan.teacher.is_verified() { "teacher weights (BLAKE3)" } else { "teacher, by name" },
        template = cell(&plan.template),
        weights = code_cell(&plan.teacher.weights_blake3),
        vocabulary = plan.teacher.vocab_size,
        bits = plan.mantissa_bits,
    )
}

/// A stranger's text in a cell of a table: one line that is neither Markdown nor HTML.
fn cell(text: &str) -> String {
    let mut cell = String::new();
    for letter in visible_line(text).chars() {
        match letter {
            '&' => cell += "&amp;",
            '<' => cell += "&lt;",
            '>' => cell += "&gt;",
            '|' | '\\' | '`' | '*' | '[' | ']' => cell.extend(['\\', letter]),
            letter => cell.push(letter),
        }
    }
    cell
}

/// The same between backticks, where only they and the bar of a table mean something.
fn code_cell(text: &str) -> String {
    visible_line(text).replace('`', "'").replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_names_stay_in_their_cells() {
        for plain in ["chat", "minillm", "ChatML 2"] {
            assert_eq!(cell(plain), plain);
        }
        let hostile = "a\u{1b}[2J|\n# b <img src=x> [c](d) `e`";
        assert_eq!(cell(hostile), "a\\\\x1b\\[2J\\|\\\\n# b &lt;img src=x&gt; \\[c\\](d) \\`e\\`");
        assert_eq!(code_cell(hostile), "a\\x1b[2J\\|\\n# b <img src=x> [c](d) 'e'");
    }
}
