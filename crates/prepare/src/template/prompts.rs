//! Prompts that do not come with the tokenizer.

const WITHOUT_CONTEXT: &str = "Below is an instruction that describes a task. Write a response that appropriately \
                               completes the request.\n\n### Instruction:\n";
const WITH_CONTEXT: &str = "Below is an instruction that describes a task, paired with an input that provides \
                            further context. Write a response that appropriately completes the request.\n\n### \
                            Instruction:\n";

/// The prompt of MiniLLM (arXiv 2306.08543) for Dolly, which the paper (arXiv 2502.11306) uses too.
pub fn minillm_prompt(instruction: &str, context: &str) -> String {
    if context.is_empty() {
        format!("{WITHOUT_CONTEXT}{instruction}\n\n### Response:\n")
    } else {
        format!("{WITH_CONTEXT}{instruction}\n\n### Input:\n{context}\n\n### Response:\n")
    }
}

/// The instruction and the context, each on lines of its own.
pub(crate) fn plain_prompt(instruction: &str, context: &str) -> String {
    if context.is_empty() { format!("{instruction}\n") } else { format!("{instruction}\n{context}\n") }
}
