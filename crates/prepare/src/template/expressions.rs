//! Jinja2's parser: expressions.

use super::ast::{Applied, Arguments, Binary, Call, Comparison, Const, Expr, Name, Place};
use super::lexer::{SyntaxError, Token, syntax_error};
use super::parser::Parser;

type Parsed<T> = Result<T, SyntaxError>;

impl Parser {
    /// An expression, or several with commas between them: a tuple.
    pub(super) fn tuple(&mut self, with_condition: bool, ends: &[&str]) -> Parsed<Expr> {
        self.tuple_in(with_condition, ends, false)
    }

    fn tuple_in(&mut self, with_condition: bool, ends: &[&str], in_parentheses: bool) -> Parsed<Expr> {
        let mut items = Vec::new();
        let mut is_tuple = false;
        loop {
            if !items.is_empty() {
                self.expect_operator(",")?;
            }
            if self.is_tuple_end(ends) {
                break;
            }
            items.push(if with_condition { self.expression()? } else { self.or()? });
            if !self.is_operator(",") {
                break;
            }
            is_tuple = true;
        }
        if is_tuple || items.is_empty() && in_parentheses {
            return Ok(Expr::Tuple(items));
        }
        match items.pop() {
            Some(item) => Ok(item),
            None => self.unexpected("an expression"),
        }
    }

    pub(super) fn is_tuple_end(&self, ends: &[&str]) -> bool {
        matches!(self.current(), Token::VariableEnd | Token::BlockEnd)
            || self.is_operator(")")
            || ends.iter().any(|end| self.is_name(end))
    }

    /// One expression.
    pub(super) fn expression(&mut self) -> Parsed<Expr> {
        self.enter()?;
        let mut yes = self.or()?;
        while self.skip_name("if") {
            let test = Box::new(self.or()?);
            let no = if self.skip_name("else") { Some(Box::new(self.expression()?)) } else { None };
            yes = Expr::Condition { test, yes: Box::new(yes), no };
        }
        self.leave();
        Ok(yes)
    }

    fn or(&mut self) -> Parsed<Expr> {
        let mut left = self.and()?;
        let mut terms = 0;
        while self.skip_name("or") {
            self.chain(&mut terms)?;
            left = Expr::Or(Box::new((left, self.and()?)));
        }
        Ok(left)
    }

    fn and(&mut self) -> Parsed<Expr> {
        let mut left = self.not()?;
        let mut terms = 0;
        while self.skip_name("and") {
            self.chain(&mut terms)?;
            left = Expr::And(Box::new((left, self.not()?)));
        }
        Ok(left)
    }

    fn not(&mut self) -> Parsed<Expr> {
        if !self.skip_name("not") {
            return self.compare();
        }
        self.enter()?;
        let inner = self.not()?;
        self.leave();
        Ok(Expr::Not(Box::new(inner)))
    }

    fn compare(&mut self) -> Parsed<Expr> {
        let left = self.sum()?;
        let mut operands = Vec::new();
        loop {
            let comparison = match self.current() {
                Token::Operator("==") => Comparison::Equal,
                Token::Operator("!=") => Comparison::NotEqual,
                Token::Operator("<") => Comparison::Less,
                Token::Operator("<=") => Comparison::LessEqual,
                Token::Operator(">") => Comparison::Greater,
                Token::Operator(">=") => Comparison::GreaterEqual,
                Token::Name(name) if name == "in" => Comparison::In,
                Token::Name(name) if name == "not" && self.look_is_name("in") => {
                    self.next();
                    Comparison::NotIn
                }
                _ => break,
            };
            self.next();
            operands.push((comparison, self.sum()?));
        }
        Ok(if operands.is_empty() { left } else { Expr::Compare(Box::new(left), operands) })
    }

    fn sum(&mut self) -> Parsed<Expr> {
        let mut left = self.concat()?;
        let mut terms = 0;
        loop {
            let operator = match self.current() {
                Token::Operator("+") => Binary::Add,
                Token::Operator("-") => Binary::Sub,
                _ => return Ok(left),
            };
            self.next();
            self.chain(&mut terms)?;
            left = Expr::Binary(operator, Box::new((left, self.concat()?)));
        }
    }

    fn concat(&mut self) -> Parsed<Expr> {
        let first = self.product()?;
        if !self.is_operator("~") {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.skip_operator("~") {
            parts.push(self.product()?);
        }
        Ok(Expr::Concat(parts))
    }

    fn product(&mut self) -> Parsed<Expr> {
        let mut left = self.power()?;
        let mut terms = 0;
        loop {
            let operator = match self.current() {
                Token::Operator("*") => Binary::Mul,
                Token::Operator("/") => Binary::Div,
                Token::Operator("//") => Binary::FloorDiv,
                Token::Operator("%") => Binary::Mod,
                _ => return Ok(left),
            };
            self.next();
            self.chain(&mut terms)?;
            left = Expr::Binary(operator, Box::new((left, self.power()?)));
        }
    }

    fn power(&mut self) -> Parsed<Expr> {
        let mut left = self.unary(true)?;
        let mut terms = 0;
        while self.skip_operator("**") {
            self.chain(&mut terms)?;
            left = Expr::Binary(Binary::Pow, Box::new((left, self.unary(true)?)));
        }
        Ok(left)
    }

    fn unary(&mut self, with_filter: bool) -> Parsed<Expr> {
        self.enter()?;
        let expression = if self.skip_operator("-") {
            Expr::Negative(Box::new(self.unary(false)?))
        } else if self.skip_operator("+") {
            Expr::Positive(Box::new(self.unary(false)?))
        } else {
            self.primary()?
        };
        let expression = self.postfix(expression)?;
        let expression = if with_filter { self.filters(expression)? } else { expression };
        self.leave();
        Ok(expression)
    }

    fn primary(&mut self) -> Parsed<Expr> {
        let constant = match self.current().clone() {
            Token::Name(name) => {
                self.next();
                match name.as_str() {
                    "true" | "True" => Const::Bool(true),
                    "false" | "False" => Const::Bool(false),
                    "none" | "None" => Const::None,
                    _ => return Ok(Expr::Name(Name { name: name.into(), place: Place::default() })),
                }
            }
            Token::Text(mut text) => {
                self.next();
                while let Token::Text(more) = self.current() {
                    text.push_str(more);
                    self.next();
                }
                Const::Text(text.into())
            }
            Token::Int(value) => {
                self.next();
                Const::Int(value)
            }
            Token::Float(value) => {
                self.next();
                Const::Float(value)
            }
            Token::Operator("(") => {
                self.next();
                let inner = self.tuple_in(true, &[], true)?;
                self.expect_operator(")")?;
                return Ok(inner);
            }
            Token::Operator("[") => return self.list(),
            Token::Operator("{") => return self.dict(),
            _ => return self.unexpected("an expression"),
        };
        Ok(Expr::Const(constant))
    }

    fn list(&mut self) -> Parsed<Expr> {
        self.expect_operator("[")?;
        let mut items = Vec::new();
        while !self.is_operator("]") {
            if !items.is_empty() {
                self.expect_operator(",")?;
            }
            if self.is_operator("]") {
                break;
            }
            items.push(self.expression()?);
        }
        self.expect_operator("]")?;
        Ok(Expr::List(items))
    }

    fn dict(&mut self) -> Parsed<Expr> {
        self.expect_operator("{")?;
        let mut entries = Vec::new();
        while !self.is_operator("}") {
            if !entries.is_empty() {
                self.expect_operator(",")?;
            }
            if self.is_operator("}") {
                break;
            }
            let key = self.expression()?;
            self.expect_operator(":")?;
            entries.push((key, self.expression()?));
        }
        self.expect_operator("}")?;
        Ok(Expr::Dict(entries))
    }

    fn postfix(&mut self, mut expression: Expr) -> Parsed<Expr> {
        let mut terms = 0;
        loop {
            expression = match self.current() {
                Token::Operator(".") => self.attribute(expression)?,
                Token::Operator("[") => self.subscript(expression)?,
                Token::Operator("(") => self.call(expression)?,
                _ => return Ok(expression),
            };
            self.chain(&mut terms)?;
        }
    }

    fn attribute(&mut self, of: Expr) -> Parsed<Expr> {
        self.next();
        let found = self.current().clone();
        self.next();
        match found {
            Token::Name(name) => Ok(Expr::Attribute(Box::new(of), name.into())),
            Token::Int(index) => Ok(Expr::Item(Box::new((of, Expr::Const(Const::Int(index)))))),
            _ => self.unexpected("a name or a number after `.`"),
        }
    }

    fn subscript(&mut self, of: Expr) -> Parsed<Expr> {
        self.next();
        let mut arguments = Vec::new();
        while !self.is_operator("]") {
            if !arguments.is_empty() {
                self.expect_operator(",")?;
            }
            arguments.push(self.subscribed()?);
        }
        self.expect_operator("]")?;
        let argument = match <[Expr; 1]>::try_from(arguments) {
            Ok([argument]) => argument,
            Err(arguments) => Expr::Tuple(arguments),
        };
        Ok(Expr::Item(Box::new((of, argument))))
    }

    /// An index or a slice.
    fn subscribed(&mut self) -> Parsed<Expr> {
        let mut bounds = [None, None, None];
        if !self.is_operator(":") {
            let first = self.expression()?;
            if !self.is_operator(":") {
                return Ok(first);
            }
            bounds[0] = Some(first);
        }
        for bound in &mut bounds[1..] {
            if !self.skip_operator(":") {
                break;
            }
            if ![":", "]", ","].iter().any(|end| self.is_operator(end)) {
                *bound = Some(self.expression()?);
            }
        }
        Ok(Expr::Slice(Box::new(bounds)))
    }

    fn call(&mut self, function: Expr) -> Parsed<Expr> {
        let arguments = self.arguments()?;
        Ok(Expr::Call(Box::new(Call { function, arguments })))
    }

    fn arguments(&mut self) -> Parsed<Arguments> {
        self.expect_operator("(")?;
        let mut arguments = Arguments::default();
        let mut comma = false;
        while !self.is_operator(")") {
            if comma {
                self.expect_operator(",")?;
                if self.is_operator(")") {
                    break;
                }
            }
            comma = true;
            let Arguments { positional, named, more_positional, more_named } = &mut arguments;
            let kind = self.current().clone();
            let fits = match kind {
                Token::Operator("*") => more_positional.is_none() && more_named.is_none(),
                Token::Operator("**") => more_named.is_none(),
                Token::Name(_) if self.look_is_operator("=") => more_named.is_none(),
                _ => more_positional.is_none() && more_named.is_none() && named.is_empty(),
            };
            if !fits {
                return syntax_error(self.line(), "invalid syntax for function call expression");
            }
            match kind {
                Token::Operator("*") => {
                    self.next();
                    *more_positional = Some(self.expression()?);
                }
                Token::Operator("**") => {
                    self.next();
                    *more_named = Some(self.expression()?);
                }
                Token::Name(name) if self.look_is_operator("=") => {
                    self.next();
                    self.next();
                    named.push((name.into(), self.expression()?));
                }
                _ => positional.push(self.expression()?),
            }
        }
        self.expect_operator(")")?;
        Ok(arguments)
    }

    fn filters(&mut self, mut expression: Expr) -> Parsed<Expr> {
        let mut terms = 0;
        loop {
            expression = match self.current() {
                Token::Operator("|") => self.filter(Some(expression))?,
                Token::Operator("(") => self.call(expression)?,
                Token::Name(name) if name == "is" => self.test(expression)?,
                _ => return Ok(expression),
            };
            self.chain(&mut terms)?;
        }
    }

    /// The filters after a value, or of a block; the first of a filter block stands without `|`.
    pub(super) fn block_filters(&mut self, begins_inline: bool) -> Parsed<Option<Expr>> {
        let mut filter = if begins_inline { Some(self.filter_call(None)?) } else { None };
        while self.is_operator("|") {
            filter = Some(self.filter(filter)?);
        }
        Ok(filter)
    }

    fn filter(&mut self, value: Option<Expr>) -> Parsed<Expr> {
        self.expect_operator("|")?;
        self.filter_call(value)
    }

    fn filter_call(&mut self, value: Option<Expr>) -> Parsed<Expr> {
        let name = self.dotted_name()?;
        let arguments = if self.is_operator("(") { self.arguments()? } else { Arguments::default() };
        Ok(Expr::Filter(Box::new(Applied { value, name: name.into(), arguments })))
    }

    fn dotted_name(&mut self) -> Parsed<String> {
        let mut name = self.expect_any_name()?;
        while self.skip_operator(".") {
            name.push('.');
            name.push_str(&self.expect_any_name()?);
        }
        Ok(name)
    }

    fn test(&mut self, value: Expr) -> Parsed<Expr> {
        self.next();
        let negated = self.skip_name("not");
        let name = self.dotted_name()?;
        let arguments = match self.current() {
            Token::Operator("(") => self.arguments()?,
            Token::Name(word) if ["else", "or", "and"].contains(&word.as_str()) => Arguments::default(),
            Token::Name(word) if word == "is" => {
                return syntax_error(self.line(), "tests cannot be chained with `is`");
            }
            Token::Name(_)
            | Token::Text(_)
            | Token::Int(_)
            | Token::Float(_)
            | Token::Operator("[" | "{") => {
                let argument = self.primary()?;
                let argument = self.postfix(argument)?;
                Arguments { positional: vec![argument], ..Arguments::default() }
            }
            _ => Arguments::default(),
        };
        let test = Expr::Test(Box::new(Applied { value: Some(value), name: name.into(), arguments }));
        Ok(if negated { Expr::Not(Box::new(test)) } else { test })
    }
}
