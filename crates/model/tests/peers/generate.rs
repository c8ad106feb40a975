//! Answers with a repetition penalty and several end tokens are those of transformers' `generate`.

use serde::Deserialize;
use softshard_model::{Generation, Prompt};

use crate::golden::{load, path, product};

#[derive(Deserialize)]
struct Golden {
    greedy: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    model: String,
    repetition_penalty: f64,
    stop_ids: Vec<i32>,
    prompts: Vec<Vec<i32>>,
    answers: Vec<Vec<i32>>,
}

/// As many as golden_generate.py asks for.
const NEW_TOKENS: usize = 24;

#[test]
fn penalised_answers_are_those_of_transformers() {
    let text = std::fs::read_to_string(path("generate.json")).expect("golden/generate.json is there");
    let golden: Golden = serde_json::from_str(&text).expect("it is JSON");
    for case in golden.greedy {
        let decoder = load(&case.model);
        let generation = Generation {
            repetition_penalty: case.repetition_penalty,
            ..Generation::greedy(NEW_TOKENS, &case.stop_ids)
        };
        let prompts: Vec<Prompt> =
            case.prompts.iter().map(|ids| Prompt { ids: ids.clone(), number: 0 }).collect();
        let found = decoder.answer(&prompts, &generation, &|_| false, product).expect("answers");
        for (found, expected) in found.iter().zip(&case.answers) {
            assert_eq!(&found.ids, expected, "{}", case.model);
            assert_eq!(found.ended, expected.len() < NEW_TOKENS, "{}", case.model);
        }
    }
}
