//! Which tokens are labelled, and what evaluation generates from.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde_json::{Value, json};
use softshard_labels::{Sequence, SequenceDataset};
use softshard_prepare::{DataConfig, Error, Split, Summary, Tokenizer, examples, run};

use crate::sequences::labelled;
use crate::support::{data_config, real_data, tokenizer_config};

/// One of the small golden tokenizers with ChatML's tokens and a template of one's own.
pub(crate) struct Chat {
    folder: tempfile::TempDir,
}

impl Chat {
    pub(crate) fn new(tokenizer: &str, template: &str) -> Self {
        let chat = Self { folder: tempfile::tempdir().unwrap() };
        let golden =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/peers/golden/tokenizers").join(tokenizer);
        for name in ["tokenizer.json", "tokenizer_config.json"] {
            fs_err::copy(golden.join(name), chat.path(name)).unwrap();
        }
        chat.edit("tokenizer_config.json", |config| config["chat_template"] = json!(template));
        chat
    }

    /// With special tokens behind those that are there.
    pub(crate) fn with_tokens(self, tokens: &[&str]) -> Self {
        let size = Tokenizer::load(self.folder.path()).unwrap().vocab_size();
        self.edit("tokenizer.json", |file| {
            for (id, token) in (size..).zip(tokens) {
                file["added_tokens"].as_array_mut().unwrap().push(json!({
                    "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": true,
                }));
            }
        });
        self
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn edit(&self, file: &str, edit: impl FnOnce(&mut Value)) {
        let mut value: Value = serde_json::from_slice(&fs_err::read(self.path(file)).unwrap()).unwrap();
        edit(&mut value);
        fs_err::write(self.path(file), value.to_string()).unwrap();
    }

    pub(crate) fn tokenizer(&self) -> Tokenizer {
        Tokenizer::load(self.folder.path()).unwrap()
    }

    fn data(&self, rows: &[impl ToString], fields: Value) -> DataConfig {
        let lines: Vec<String> = rows.iter().map(ToString::to_string).collect();
        fs_err::write(self.path("a.jsonl"), lines.join("\n")).unwrap();
        let mut all = json!({ "instructions": self.path("a.jsonl"), "template": "chat" });
        for (name, value) in fields.as_object().unwrap() {
            all[name] = value.clone();
        }
        data_config(all)
    }

    pub(crate) fn prepare(
        &self,
        rows: &[impl ToString],
        fields: Value,
    ) -> Result<(Summary, Vec<Sequence>), Error> {
        let is_all = fields["mask"] == "all";
        let data = self.data(rows, fields);
        let config = tokenizer_config(self.folder.path());
        let summary = run(&data, &config, &self.path("sequences"), &AtomicBool::new(false), &())?;
        let sequences = SequenceDataset::open(self.path("sequences/train")).unwrap().read_all().unwrap();
        // What is generated from is how the sequence begins, always.
        for example in examples(&data, &config, &self.tokenizer(), Some(Split::Train)).unwrap() {
            let same = sequences.iter().find(|one| one.source.as_deref() == Some(&example.source));
            if let Some(sequence) = same {
                assert!(sequence.input_ids.starts_with(&example.prompt_ids), "{}", example.source);
                let next = i32::try_from(example.prompt_ids.len()).unwrap();
                assert!(is_all || next == 0 || sequence.positions.contains(&next), "{}", example.source);
            }
        }
        Ok((summary, sequences))
    }

    /// The labelled text of one row.
    fn label(&self, row: &Value, fields: Value) -> String {
        let (_, sequences) = self.prepare(std::slice::from_ref(row), fields).unwrap();
        labelled(&sequences[0], &self.tokenizer())
    }
}

/// Qwen3's: of earlier rounds no reasoning is shown, and the last turn always begins with a thought.
const THINKING: &str = "{%- set ns = namespace(last=-1) %}{%- for m in messages %}{%- if m.role == 'user' %}\
    {%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}{%- for m in messages %}{%- if m.role == 'assistant' %}\
    {{- '<|im_start|>assistant\\n' }}{%- if loop.index0 > ns.last and (loop.last or m.reasoning_content) %}\
    {{- '<think>\\n' + (m.reasoning_content or '') + '\\n</think>\\n\\n' }}{%- endif %}{{- m.content or '' }}\
    {%- for c in m.tool_calls or [] %}{{- '\\n<tool_call>' + (c.function | tojson) + '</tool_call>' }}{%- endfor %}\
    {{- '<|im_end|>\\n' }}{%- else %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}\
    {%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}\
    {%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}\
    {%- endif %}";
const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

fn chatml(template: &str) -> Chat {
    Chat::new("qwen-like", template).with_tokens(&["<|im_start|>", "<|im_end|>"])
}

fn turn(role: &str, content: &str) -> Value {
    json!({ "role": role, "content": content })
}

fn two_rounds() -> Value {
    json!({ "messages": [turn("user", "One?"), turn("assistant", "One."), turn("user", "Two?"), turn("assistant", "Two.")] })
}

#[test]
fn every_answer_is_labelled_with_the_token_that_ends_it() {
    let call = json!([{ "type": "function", "function": { "name": "f", "arguments": { "of": "Q" } } }]);
    let mut flagged = two_rounds();
    flagged["messages"][1]["weight"] = json!(0);
    let mut taught = two_rounds();
    taught["messages"][2]["train"] = json!(true);
    let mut reasoned = two_rounds();
    reasoned["messages"][1]["reasoning_content"] = json!("early");
    reasoned["messages"][3]["reasoning_content"] = json!("late");
    // Of the first round the reasoning is dropped, also before the tool's answer: no prompt of it begins the conversation.
    let with_tools = json!({ "messages": [
        turn("user", "One?"),
        { "role": "assistant", "content": null, "reasoning_content": "r", "tool_calls": call },
        turn("tool", "1"), turn("assistant", "One."), turn("user", "Two?"),
        { "role": "assistant", "content": "", "tool_calls": call },
    ] });
    let written = "\n<tool_call>{\"arguments\": {\"of\": \"Q\"}, \"name\": \"f\"}</tool_call><|im_end|>";
    let no_thought = json!({ "enable_thinking": false });
    let none = json!({});
    let last = "<think>\n\n</think>\n\n";
    let cases = [
        (CHATML, &two_rounds(), &none, "One.<|im_end|>Two.<|im_end|>".to_owned()),
        (CHATML, &flagged, &none, "Two.<|im_end|>".to_owned()),
        (CHATML, &taught, &none, "One.<|im_end|>Two?<|im_end|>Two.<|im_end|>".to_owned()),
        (THINKING, &two_rounds(), &none, format!("One.<|im_end|>{last}Two.<|im_end|>")),
        (THINKING, &reasoned, &none, "One.<|im_end|><think>\nlate\n</think>\n\nTwo.<|im_end|>".to_owned()),
        (THINKING, &two_rounds(), &no_thought, "One.<|im_end|>Two.<|im_end|>".to_owned()),
        (THINKING, &with_tools, &none, format!("{written}One.<|im_end|>{last}{written}")),
    ];
    for (template, row, variables, expected) in cases {
        let fields = json!({ "mask": "all_responses", "template_variables": variables });
        assert_eq!(chatml(template).label(row, fields), expected, "{row}");
    }
}

#[test]
fn the_last_answer_holds_its_reasoning_and_its_calls() {
    let row = json!({ "messages": [turn("user", "One?"),
        { "role": "assistant", "content": "", "reasoning_content": "why", "tool_calls": [
            { "type": "function", "function": { "name": "f", "arguments": {} } }] }] });
    let expected =
        "<think>\nwhy\n</think>\n\n\n<tool_call>{\"arguments\": {}, \"name\": \"f\"}</tool_call><|im_end|>";
    assert_eq!(chatml(THINKING).label(&row, json!({})), expected);
    let data = chatml(THINKING);
    let config = data.data(std::slice::from_ref(&row), json!({}));
    let example =
        examples(&config, &tokenizer_config(data.folder.path()), &data.tokenizer(), None).unwrap().remove(0);
    assert_eq!(example.prompt, "<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n");
    assert!(example.response.contains("<tool_call>"), "{}", example.response);
}

#[test]
fn templates_that_end_turns_otherwise_are_read_as_they_write() {
    // gpt-oss: the last turn ends with another token than those before it.
    let harmony = "{% for m in messages %}{{ '<|start|>' + m.role + '<|message|>' + m.content }}\
        {{ '<|return|>' if loop.last and m.role == 'assistant' else '<|end|>' }}{% endfor %}\
        {% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}";
    let chat =
        Chat::new("qwen-like", harmony).with_tokens(&["<|start|>", "<|message|>", "<|return|>", "<|end|>"]);
    let all = || json!({ "mask": "all_responses" });
    assert_eq!(chat.label(&two_rounds(), all()), "<|message|>One.<|end|><|message|>Two.<|return|>");
    // The token that ends a turn comes with the next one.
    let between = "{% for m in messages %}{% if m.role == 'user' %}{{ eos_token if not loop.first else '' }}{{ 'U:' + m.content }}\
        {% else %}{{ 'A:' + m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'A:' }}{% endif %}";
    let ended = "One.<|end_of_text|>Two.<|end_of_text|>";
    assert_eq!(Chat::new("qwen-like", between).label(&two_rounds(), all()), ended);
    // Without such a token the line break ends a turn, and the last one gets the end of the sequence.
    let lines = "{% for m in messages %}{{ m.role + ':' + m.content + '\\n' }}{% endfor %}\
        {% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}";
    assert_eq!(Chat::new("qwen-like", lines).label(&two_rounds(), all()), "One.\nTwo.\n<|end_of_text|>");
    // DeepSeek-R1: the prompt begins a thought that conversations do not have.
    let thought = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content.split('</think>')[-1] + '<|im_end|>' }}\
        {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}";
    let row = json!({ "messages": [turn("user", "One?"), turn("assistant", "<think>well</think>Quite.")] });
    let (summary, _) = chatml(thought).prepare(std::slice::from_ref(&row), json!({})).unwrap();
    assert_eq!(summary.mask.shorter_prompts, 1);
    assert_eq!(chatml(thought).label(&row, json!({})), "Quite.<|im_end|>");
    // Mistral: only the last question stands with the system's text.
    let system = "{% for m in messages[1:] %}{% if m.role == 'user' %}{{ '[I]' }}{% if loop.last or loop.index0 == messages | length - 3 %}\
        {{ messages[0].content }}{% endif %}{{ m.content + '[/I]' }}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}";
    let mut row = two_rounds();
    row["messages"].as_array_mut().unwrap().insert(0, turn("system", "S"));
    assert_eq!(Chat::new("qwen-like", system).label(&row, all()), "One.<|end_of_text|> Two.<|end_of_text|>");
}

#[test]
fn a_template_whose_header_is_another_than_its_prompt_is_refused_by_row() {
    let template = "{% for m in messages %}{{ '<|im_start|>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content }}\
        {{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
    let chat = chatml(template);
    let error = chat.prepare(&[two_rounds()], json!({})).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("\"assistant\\n\" in the prompt, \"model\\n"), "{text}");
    assert!(error.is_bad_data() && !chat.path("sequences").exists());
}

#[test]
fn a_row_that_is_refused_late_leaves_nothing_behind() {
    let chat = chatml(&format!(
        "{{% if messages[0].content == 'bad' %}}{{{{ raise_exception('no') }}}}{{% endif %}}{CHATML}"
    ));
    let bad = json!({ "messages": [turn("user", "bad"), turn("assistant", "x")] });
    let mut rows: Vec<Value> = (0..1100)
        .map(|row: usize| json!({ "messages": [turn("user", &row.to_string()), turn("assistant", "x")] }))
        .collect();
    rows.push(bad);
    let error = chat.prepare(&rows, json!({})).unwrap_err().to_string();
    assert!(error.contains("line 1101"), "{error}");
    assert!(!chat.path("sequences").exists(), "nothing is left");
}

#[test]
fn a_token_of_prompt_and_answer_is_labelled_and_counted() {
    let template = "{% for m in messages %}{% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}{% else %}\
        {{ 'ASSISTANT: ' + m.content + eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}";
    let chat = Chat::new("qwen-like", template);
    let row = |answer: &str| json!({ "messages": [turn("user", "Which?"), turn("assistant", answer)] });
    let (summary, sequences) = chat.prepare(&[row("the"), row("label"), row("12")], json!({})).unwrap();
    let texts: Vec<String> = sequences.iter().map(|one| labelled(one, &chat.tokenizer())).collect();
    assert_eq!(texts, [" the<|end_of_text|>", " label<|end_of_text|>", "12<|end_of_text|>"]);
    assert_eq!((summary.mask.straddling_tokens, summary.mask.straddling_sequences), (2, 2));
    let text = summary.to_string();
    assert!(text.contains("2 tokens with text of prompt and answer, labelled, in 2 sequences"), "{text}");
}

#[test]
fn white_space_that_a_special_token_takes_along_is_not_in_it() {
    // Phi-3: `<|assistant|>` takes the line break behind it, and what else is white.
    let template = "{% for m in messages %}{{ '<|im_start|>' + m.role + '[end]\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}\
        {% if add_generation_prompt %}{{ '<|im_start|>assistant[end]\\n' }}{% endif %}";
    let row = json!({ "messages": [turn("user", "Hi"), turn("assistant", "  the student")] });
    assert_eq!(chatml(template).label(&row, json!({})), "the student<|im_end|>");
}

#[test]
fn what_the_row_leaves_out_is_not_learnt_and_counted() {
    let row = |weight: u8| {
        json!({ "messages": [turn("user", "hi"),
        { "role": "assistant", "content": "bad", "weight": weight }] })
    };
    for mask in ["response", "all_responses", "all"] {
        let chat = chatml(CHATML);
        let prepared = chat.prepare(&[row(0), two_rounds()], json!({ "mask": mask })).unwrap();
        let dropped = u64::from(mask != "all");
        assert_eq!(
            (prepared.0.dropped.left_out, prepared.0.train.sequences),
            (dropped, 2 - dropped),
            "{mask}"
        );
        assert_eq!(prepared.0.mask.turns_left_out, 1 - dropped, "{mask}");
        assert!(!labelled(&prepared.1[0], &chat.tokenizer()).contains("bad"), "{mask}");
    }
    let error = chatml(CHATML).prepare(&[row(0)], json!({})).unwrap_err().to_string();
    assert!(error.contains("1 left out of the loss by the row itself"), "{error}");
    let mut weighed = two_rounds();
    weighed["messages"][1]["weight"] = json!(1);
    let (summary, _) = chatml(CHATML).prepare(&[weighed], json!({})).unwrap();
    assert_eq!(summary.mask.turns_not_taken_in, 1);
}

#[test]
fn rows_of_token_ids_bring_their_mask() {
    let chat = chatml(CHATML);
    let row = json!({ "input_ids": [5, 6, 7, 8, 9], "labels": [-100, -100, 7, -100, 9] });
    let (_, sequences) = chat.prepare(&[row], json!({})).unwrap();
    assert_eq!((&sequences[0].input_ids, &sequences[0].positions), (&vec![5, 6, 7, 8, 9], &vec![2, 4]));
    let all = json!({ "input_ids": [5, 6], "labels": [5, 6] });
    let (_, sequences) = chat.prepare(&[all], json!({})).unwrap();
    assert_eq!(sequences[0].positions, [1], "nothing stands before the first token");
    let foreign = json!({ "input_ids": [5, 999_999], "labels": [-100, 999_999] });
    let error = chat.prepare(&[foreign], json!({})).unwrap_err().to_string();
    assert!(error.contains("found 999999 at 1"), "{error}");
}

#[test]
fn a_template_without_marks_has_no_mask_of_its_own() {
    let error = chatml(CHATML).prepare(&[two_rounds()], json!({ "mask": "generation" })).unwrap_err();
    assert!(error.to_string().contains("marks answers with `{% generation %}`"), "{error}");
}

#[test]
fn the_first_token_is_counted_where_the_template_leaves_it_out() {
    let chat =
        |template: &str| Chat::new("llama3-like", template).with_tokens(&["<|im_start|>", "<|im_end|>"]);
    let own = format!("{{{{ bos_token }}}}{CHATML}");
    for (template, bos, first, without) in [
        (CHATML, json!(null), false, 1),
        (CHATML, json!("never"), false, 0),
        (CHATML, json!("as_tokenizer"), true, 0),
        (own.as_str(), json!(null), true, 0),
        (own.as_str(), json!("as_tokenizer"), true, 0),
        (own.as_str(), json!("never"), true, 0),
    ] {
        let chat = chat(template);
        let (summary, sequences) = chat.prepare(&[two_rounds()], json!({ "bos": bos })).unwrap();
        let bos_id = chat.tokenizer().bos().unwrap();
        let begins = sequences[0].input_ids.iter().filter(|id| **id == bos_id).count();
        assert_eq!((begins, summary.mask.without_bos), (usize::from(first), without), "{bos} {template}");
    }
    // The older key is the same thing, and not beside the newer one.
    let chat = chat(CHATML);
    let data = chat.data(&[two_rounds()], json!({ "bos": "never" }));
    let config = serde_json::from_value(json!({ "path": chat.folder.path(), "add_bos": true })).unwrap();
    let error = run(&data, &config, &chat.path("sequences"), &AtomicBool::new(false), &()).unwrap_err();
    assert!(error.to_string().contains("`data.bos` and `tokenizer.add_bos`"), "{error}");
}

#[test]
fn dolly_is_answered_from_the_ids_before_the_answer() {
    let Some(folder) = real_data() else { return };
    for (name, template) in [
        ("tokenizers/qwen2.5", "chat"),
        ("tokenizers/gpt2", "minillm"),
        ("stories260k/hf", "minillm"),
        ("stories260k/hf", "none"),
    ] {
        let out_dir = tempfile::tempdir().unwrap();
        let data = data_config(json!({
            "instructions": folder.join("dolly/databricks-dolly-15k.jsonl"), "template": template,
            "max_prompt_tokens": 200_000, "max_tokens": 400_000, "limit": 4000,
        }));
        let config = tokenizer_config(&folder.join(name));
        let summary = run(&data, &config, out_dir.path(), &AtomicBool::new(false), &()).unwrap();
        eprintln!("{name} {template}\n{summary}");
        let sequences = SequenceDataset::open(out_dir.path().join("train")).unwrap().read_all().unwrap();
        let tokenizer = Tokenizer::load(&config.path).unwrap();
        let examples = examples(&data, &config, &tokenizer, None).unwrap();
        let mut by_source: std::collections::HashMap<_, _> =
            sequences.iter().map(|one| (one.source.clone().unwrap(), one)).collect();
        let mut other_than_minillm = 0;
        for example in examples {
            let Some(sequence) = by_source.remove(&example.source) else { continue };
            let prompt = &sequence.input_ids[..usize::try_from(sequence.positions[0]).unwrap()];
            assert_eq!(example.prompt_ids, prompt, "{}", example.source);
            let encoded = tokenizer.encode(&example.prompt).unwrap();
            let alone = if prompt.first() == tokenizer.bos().as_ref() && encoded.first() != prompt.first() {
                &prompt[1..]
            } else {
                prompt
            };
            other_than_minillm += u64::from(alone.len() != encoded.len());
        }
        assert!(by_source.is_empty());
        assert_eq!(other_than_minillm, summary.mask.straddling_sequences, "{name} {template}");
    }
}
