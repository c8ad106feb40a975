//! Regular expressions over names of modules, as Python's `re` reads them.

use regex::{Regex, RegexBuilder};

use crate::lora::MAX_RANK;

/// Bytes of a compiled expression: a file's is not believed to need more.
const MOST_BYTES: usize = 1 << 20;

/// Python's `re.fullmatch`. Look-around and references to groups are not known here.
pub(crate) fn whole(expression: &str) -> Result<Regex, String> {
    compiled(&format!("^(?:{expression})$"))
}

/// An expression that was put together of a file's.
pub(crate) fn compiled(expression: &str) -> Result<Regex, String> {
    let built = RegexBuilder::new(expression).size_limit(MOST_BYTES).build();
    built.map_err(|error| {
        let error = error.to_string();
        error.lines().last().unwrap_or_default().trim().to_owned()
    })
}

/// Values for modules whose names end as an expression says; the first one that does decides.
#[derive(Debug, Clone)]
pub(crate) struct Patterns<T>(Vec<(Regex, T)>);

impl<T> Patterns<T> {
    /// # Errors
    /// An expression is none, or uses what is not known here.
    pub(crate) fn of(field: &str, pairs: Vec<(String, T)>) -> Result<Self, String> {
        let compiled = pairs.into_iter().map(|(name, value)| {
            let expression = compiled(&format!(r"^(?:.*\.)?(?:{name})$"));
            expression.map(|expression| (expression, value)).map_err(|error| {
                let expected = "expected regular expressions without look-around and references to groups";
                format!(
                    "`{field}`: {expected}, found `{name}`: {error}\nhint: write the modules' names instead"
                )
            })
        });
        compiled.collect::<Result<_, _>>().map(Self)
    }

    /// PEFT's `get_pattern_key`.
    pub(crate) fn of_module(&self, module: &str) -> Option<&T> {
        self.0.iter().find(|(expression, _)| expression.is_match(module)).map(|(_, value)| value)
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|(_, value)| value)
    }
}

/// Refuses a rank that no factors have.
pub(crate) fn check_rank(field: &str, rank: usize) -> Result<(), String> {
    if rank == 0 || rank > MAX_RANK {
        return Err(format!("`{field}`: expected 1 to {MAX_RANK}, found {rank}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected: Python 3.11's `re.match(rf"(.*\.)?({key})$", module)`.
    #[test]
    fn the_first_pattern_that_ends_a_name_decides() {
        let pairs =
            [("^model.layers.1.v_proj", 1), ("(q|v)_proj", 2), ("ayers.0.k_proj", 3), ("a|k_proj", 4)];
        let patterns = Patterns::of("p", pairs.map(|(key, value)| (key.to_owned(), value)).to_vec()).unwrap();
        let found = ["model.layers.1.v_proj", "model.layers.0.v_proj", "xq_proj", "model.layers.0.k_proj"]
            .map(|module| patterns.of_module(module).copied());
        assert_eq!(found, [Some(1), Some(2), None, Some(4)]);
        let error = Patterns::of("p", vec![("(?!a)b".to_owned(), 1)]).unwrap_err();
        assert!(error.contains("`p`: expected regular expressions without look-around"), "{error}");
    }
}
