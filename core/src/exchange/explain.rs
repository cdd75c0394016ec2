//! Explanations of a route's requests from what is stored.

use http::response;

use crate::explain::{Explain, Explanation};
use crate::policy::{BodyLength, OnRequest};
use crate::record::Record;
use crate::request::RequestView;
use crate::route::Route;

impl Route {
    /// Explains a request from the records in the store, with this response of the handler if there is one. Changes
    /// nothing: it runs only the key builder, and counts only as a read of the store.
    pub async fn explain(
        &self,
        request: RequestView<'_>,
        answer: Option<(&response::Parts, BodyLength)>,
    ) -> Explanation {
        let principal = match self.policy.on_request(&request) {
            OnRequest::Lookup(lookup) => lookup.principal(),
            OnRequest::Forward(forward) => forward.principal(),
            OnRequest::Bypass(_) => None,
        };
        let key = self.key(&request, principal).await;
        let mut records = Vec::new();
        if let Some(key) = &key {
            let record = self.read_record(key).await;
            if let Ok(Some(Record::Variants(variants))) = &record {
                let variant = key.variant(self.policy.rule().secondary_key(variants, request.headers));
                let found = self.read_record(&variant).await;
                records.push((variant, found));
            }
            records.push((key.clone(), record));
        }
        let question = Explain::new(&self.policy, request, self.context.now()).key(key);
        let question = match answer {
            Some((answer, length)) => question.answer(answer, length),
            None => question,
        };
        question.with_stored(|key| {
            let found = records.iter().find(|(known, _)| known == key);
            found.map_or(Ok(None), |(_, record)| record.clone())
        })
    }
}
