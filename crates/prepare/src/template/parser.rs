//! Jinja2's parser: statements.

use super::ast::{CallBlock, Expr, FilterBlock, For, Function, LoopFilter, Name, Place};
use super::ast::{SetBlock, Stmt, StmtKind, Target, With};
use super::lexer::{SyntaxError, Token, syntax_error, tokens};

/// Expressions and statements in each other. What Jinja2 compiles to nests parentheses, of which Python takes 200.
const MAX_DEPTH: usize = 100;
/// Operators in a row that nest as deep.
const MAX_CHAIN: usize = 180;

type Parsed<T> = Result<T, SyntaxError>;

pub(super) struct Parser {
    tokens: Vec<(Token, usize)>,
    at: usize,
    depth: usize,
    /// Whether the current function is inside of a loop.
    in_loop: bool,
    /// How many loops there are around, whatever the function.
    loops: usize,
}

/// The statements of a template.
pub(super) fn parse(source: &str) -> Parsed<Vec<Stmt>> {
    let mut parser = Parser { tokens: tokens(source)?, at: 0, depth: 0, in_loop: false, loops: 0 };
    parser.statements(&[])
}

impl Parser {
    pub(super) fn current(&self) -> &Token {
        &self.tokens[self.at].0
    }

    pub(super) fn line(&self) -> usize {
        self.tokens[self.at].1
    }

    pub(super) fn next(&mut self) {
        self.at = (self.at + 1).min(self.tokens.len() - 1);
    }

    pub(super) fn is_operator(&self, operator: &str) -> bool {
        matches!(self.current(), Token::Operator(found) if *found == operator)
    }

    pub(super) fn is_name(&self, name: &str) -> bool {
        matches!(self.current(), Token::Name(found) if found == name)
    }

    fn look(&self) -> &Token {
        &self.tokens[(self.at + 1).min(self.tokens.len() - 1)].0
    }

    pub(super) fn look_is_name(&self, name: &str) -> bool {
        matches!(self.look(), Token::Name(found) if found == name)
    }

    pub(super) fn look_is_operator(&self, operator: &str) -> bool {
        matches!(self.look(), Token::Operator(found) if *found == operator)
    }

    pub(super) fn skip_operator(&mut self, operator: &str) -> bool {
        let found = self.is_operator(operator);
        if found {
            self.next();
        }
        found
    }

    pub(super) fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        if found {
            self.next();
        }
        found
    }

    pub(super) fn expect_operator(&mut self, operator: &str) -> Parsed<()> {
        if self.skip_operator(operator) { Ok(()) } else { self.unexpected(&format!("`{operator}`")) }
    }

    pub(super) fn expect_any_name(&mut self) -> Parsed<String> {
        let Token::Name(name) = self.current() else { return self.unexpected("a name") };
        let name = name.clone();
        self.next();
        Ok(name)
    }

    fn expect_end_of_tag(&mut self) -> Parsed<()> {
        if *self.current() != Token::BlockEnd {
            return self.unexpected("the end of the tag");
        }
        self.next();
        Ok(())
    }

    pub(super) fn unexpected<T>(&self, expected: &str) -> Parsed<T> {
        let found = match self.current() {
            Token::End => "the end of the template".into(),
            Token::BlockEnd => "`%}`".into(),
            Token::VariableEnd => "`}}`".into(),
            Token::Name(name) => format!("`{name}`"),
            Token::Operator(operator) => format!("`{operator}`"),
            Token::Text(text) => format!("{text:?}"),
            Token::Int(value) => format!("`{value}`"),
            Token::Float(value) => format!("`{value}`"),
            Token::Data(_) | Token::BlockBegin | Token::VariableBegin => "text".into(),
        };
        syntax_error(self.line(), format!("expected {expected}, found {found}"))
    }

    /// One level deeper; [`Parser::leave`] comes back.
    pub(super) fn enter(&mut self) -> Parsed<()> {
        self.depth += 1;
        if self.depth <= MAX_DEPTH {
            return Ok(());
        }
        syntax_error(self.line(), format!("expected at most {MAX_DEPTH} levels of nesting, found more"))
    }

    pub(super) fn leave(&mut self) {
        self.depth -= 1;
    }

    /// One more operator in a row.
    pub(super) fn chain(&mut self, terms: &mut usize) -> Parsed<()> {
        *terms += 1;
        if *terms <= MAX_CHAIN {
            return Ok(());
        }
        syntax_error(self.line(), format!("expected at most {MAX_CHAIN} operators in a row, found more"))
    }

    /// Statements up to one of these tags, whose name is the current token then; without tags up to the end.
    fn statements(&mut self, ends: &[&str]) -> Parsed<Vec<Stmt>> {
        let mut body = Vec::new();
        loop {
            let line = self.line();
            match self.current().clone() {
                Token::Data(text) => {
                    body.push(Stmt { line, kind: StmtKind::Data(text.into()) });
                    self.next();
                }
                Token::VariableBegin => {
                    self.next();
                    let kind = StmtKind::Print(self.tuple(true, &[])?);
                    if *self.current() != Token::VariableEnd {
                        return self.unexpected("`}}`");
                    }
                    self.next();
                    body.push(Stmt { line, kind });
                }
                Token::BlockBegin => {
                    self.next();
                    if ends.iter().any(|end| self.is_name(end)) {
                        return Ok(body);
                    }
                    self.enter()?;
                    self.statement(line, &mut body)?;
                    self.leave();
                    self.expect_end_of_tag()?;
                }
                Token::End if ends.is_empty() => return Ok(body),
                _ => return self.unexpected(&format!("`{{% {} %}}`", ends.join(" %}` or `{% "))),
            }
        }
    }

    /// What stands between a tag, whose end is next, and its end tag, which is passed up to its name.
    fn body(&mut self, ends: &[&str]) -> Parsed<Vec<Stmt>> {
        self.skip_operator(":");
        self.expect_end_of_tag()?;
        let body = self.statements(ends)?;
        Ok(body)
    }

    fn whole_body(&mut self, end: &str) -> Parsed<Vec<Stmt>> {
        let body = self.body(&[end])?;
        self.next();
        Ok(body)
    }

    fn statement(&mut self, line: usize, body: &mut Vec<Stmt>) -> Parsed<()> {
        let tag = self.expect_any_name()?;
        let kind = match tag.as_str() {
            "for" => self.for_loop()?,
            "if" => self.condition()?,
            "set" => self.set()?,
            "with" => self.with()?,
            "macro" => self.macro_definition()?,
            "call" => self.call_block()?,
            "filter" => self.filter_block()?,
            "generation" => {
                let body = self.function_body(Function::default(), "endgeneration")?;
                StmtKind::Generation(Box::new(body))
            }
            "print" => return self.print(line, body),
            "break" | "continue" if !self.in_loop => {
                return syntax_error(line, format!("`{tag}` outside of a loop"));
            }
            "break" => StmtKind::Break,
            "continue" => StmtKind::Continue,
            "extends" | "include" | "import" | "from" | "block" | "autoescape" => {
                return syntax_error(
                    line,
                    format!("the tag `{tag}` is not supported in chat templates here"),
                );
            }
            _ => return syntax_error(line, format!("encountered unknown tag `{tag}`")),
        };
        body.push(Stmt { line, kind });
        Ok(())
    }

    fn print(&mut self, line: usize, body: &mut Vec<Stmt>) -> Parsed<()> {
        let mut first = true;
        while *self.current() != Token::BlockEnd {
            if !first {
                self.expect_operator(",")?;
            }
            first = false;
            body.push(Stmt { line, kind: StmtKind::Print(self.expression()?) });
        }
        Ok(())
    }

    fn for_loop(&mut self) -> Parsed<StmtKind> {
        let target = self.target(&["in"], false)?;
        self.loops += 1;
        self.check_not_loop(&target)?;
        if !self.skip_name("in") {
            return self.unexpected("`in`");
        }
        let items = self.tuple(false, &["recursive"])?;
        let filter = if self.skip_name("if") {
            Some(LoopFilter { target: target.clone(), test: self.expression()?, loads: Vec::new() })
        } else {
            None
        };
        let recursive = self.skip_name("recursive");
        let in_loop = std::mem::replace(&mut self.in_loop, true);
        let body = self.body(&["endfor", "else"])?;
        self.in_loop = in_loop;
        let otherwise = if self.skip_name("else") {
            self.whole_body("endfor")?
        } else {
            self.next();
            Vec::new()
        };
        self.loops -= 1;
        Ok(StmtKind::For(Box::new(For {
            target,
            items,
            filter,
            recursive,
            body,
            otherwise,
            loop_slot: None,
            loads: Vec::new(),
            otherwise_loads: Vec::new(),
            slots: 0,
        })))
    }

    fn check_not_loop(&self, target: &Target) -> Parsed<()> {
        if self.loops == 0 || !assigns(target, "loop") {
            return Ok(());
        }
        syntax_error(self.line(), "can't assign to the special variable `loop` in a loop")
    }

    fn condition(&mut self) -> Parsed<StmtKind> {
        let mut branches = Vec::new();
        let mut otherwise = Vec::new();
        loop {
            let test = self.tuple(false, &[])?;
            branches.push((test, self.body(&["elif", "else", "endif"])?));
            if self.skip_name("elif") {
                continue;
            }
            if self.skip_name("else") {
                otherwise = self.body(&["endif"])?;
            }
            self.next();
            break;
        }
        Ok(StmtKind::If(branches, otherwise))
    }

    fn set(&mut self) -> Parsed<StmtKind> {
        let target = self.target(&[], true)?;
        self.check_not_loop(&target)?;
        if self.skip_operator("=") {
            return Ok(StmtKind::Set(target, self.tuple(true, &[])?));
        }
        let filter = self.block_filters(false)?;
        let body = self.whole_body("endset")?;
        Ok(StmtKind::SetBlock(Box::new(SetBlock { target, filter, body, loads: Vec::new() })))
    }

    fn with(&mut self) -> Parsed<StmtKind> {
        let mut assignments = Vec::new();
        while *self.current() != Token::BlockEnd {
            if !assignments.is_empty() {
                self.expect_operator(",")?;
            }
            let target = self.target(&[], false)?;
            self.expect_operator("=")?;
            assignments.push((target, self.expression()?));
        }
        let body = self.whole_body("endwith")?;
        Ok(StmtKind::With(Box::new(With { assignments, body, loads: Vec::new() })))
    }

    fn macro_definition(&mut self) -> Parsed<StmtKind> {
        let name = self.assigned_name()?;
        let mut function = Function { name: Some(name.name.clone()), ..Function::default() };
        self.signature(&mut function)?;
        let function = self.function_body(function, "endmacro")?;
        Ok(StmtKind::Macro(name, Box::new(function)))
    }

    fn call_block(&mut self) -> Parsed<StmtKind> {
        let mut function = Function::default();
        if self.is_operator("(") {
            self.signature(&mut function)?;
        }
        let call = self.expression()?;
        if !matches!(call, Expr::Call(_)) {
            return self.unexpected("a call before the end of the tag");
        }
        let body = self.function_body(function, "endcall")?;
        Ok(StmtKind::Call(Box::new(CallBlock { call, body })))
    }

    fn filter_block(&mut self) -> Parsed<StmtKind> {
        let Some(filter) = self.block_filters(true)? else { return self.unexpected("a filter") };
        let body = self.whole_body("endfilter")?;
        Ok(StmtKind::FilterBlock(Box::new(FilterBlock { filter, body, loads: Vec::new() })))
    }

    fn function_body(&mut self, mut function: Function, end: &str) -> Parsed<Function> {
        let in_loop = std::mem::replace(&mut self.in_loop, false);
        function.body = self.whole_body(end)?;
        self.in_loop = in_loop;
        Ok(function)
    }

    fn signature(&mut self, function: &mut Function) -> Parsed<()> {
        self.expect_operator("(")?;
        while !self.is_operator(")") {
            if !function.parameters.is_empty() {
                self.expect_operator(",")?;
            }
            let name = self.assigned_name()?;
            if function.parameters.iter().any(|other| other.name == name.name) {
                return syntax_error(self.line(), format!("duplicate argument `{}`", name.name));
            }
            function.parameters.push(name);
            if self.skip_operator("=") {
                function.defaults.push(self.expression()?);
            } else if !function.defaults.is_empty() {
                return syntax_error(self.line(), "non-default argument follows default argument");
            }
        }
        self.expect_operator(")")
    }

    fn assigned_name(&mut self) -> Parsed<Name> {
        let line = self.line();
        let name = self.expect_any_name()?;
        if ["true", "false", "none", "True", "False", "None"].contains(&name.as_str()) {
            return syntax_error(line, format!("can't assign to `{name}`"));
        }
        Ok(Name { name: name.into(), place: Place::default() })
    }

    /// What can be assigned to: names, and of a `set` attributes of namespaces; several are a tuple.
    fn target(&mut self, ends: &[&str], with_namespace: bool) -> Parsed<Target> {
        let mut targets = Vec::new();
        let mut is_tuple = false;
        loop {
            if !targets.is_empty() {
                self.expect_operator(",")?;
            }
            if self.is_tuple_end(ends) {
                break;
            }
            targets.push(self.single_target(with_namespace)?);
            if !self.is_operator(",") {
                break;
            }
            is_tuple = true;
        }
        match targets.pop() {
            Some(target) if !is_tuple => Ok(target),
            Some(target) => {
                targets.push(target);
                Ok(Target::Tuple(targets))
            }
            None => self.unexpected("a name to assign to"),
        }
    }

    fn single_target(&mut self, with_namespace: bool) -> Parsed<Target> {
        if self.skip_operator("(") {
            self.enter()?;
            let inner = self.target(&[], false)?;
            self.leave();
            self.expect_operator(")")?;
            return Ok(inner);
        }
        let name = self.assigned_name()?;
        if with_namespace && self.skip_operator(".") {
            return Ok(Target::Attribute(name, self.expect_any_name()?.into()));
        }
        Ok(Target::Name(name))
    }
}

fn assigns(target: &Target, wanted: &str) -> bool {
    match target {
        Target::Name(name) => *name.name == *wanted,
        Target::Tuple(targets) => targets.iter().any(|target| assigns(target, wanted)),
        Target::Attribute(..) => false,
    }
}

/// The message for a filter or a test that is not there.
pub(super) fn unknown(kind: &str, name: &str) -> String {
    let in_jinja = ["random", "pprint", "urlize", "wordwrap", "striptags"].contains(&name);
    if in_jinja {
        format!("the {kind} `{name}` is not supported in chat templates here")
    } else {
        format!("no {kind} named `{name}`")
    }
}
