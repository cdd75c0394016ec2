//! Response fields about one exchange: they would be false on a stored response.

/// Returns `true` for fields that describe one run of a handler or one client's quota: ids of requests and traces, timings, rate
/// limits, and tokens against forged requests. Layers add them, so the author of a route may not know about them.
pub(crate) fn is_momentary(name: &str) -> bool {
    // Most fields of a response have other beginnings.
    match name.as_bytes() {
        [b'x', b'-', ..] => {
            matches!(
                name,
                "x-request-id"
                    | "x-requestid"
                    | "x-correlation-id"
                    | "x-correlationid"
                    | "x-trace-id"
                    | "x-span-id"
                    | "x-transaction-id"
                    | "x-amzn-requestid"
                    | "x-amzn-trace-id"
                    | "x-amz-request-id"
                    | "x-amz-id-2"
                    | "x-amz-cf-id"
                    | "x-cloud-trace-context"
                    | "x-ms-request-id"
                    | "x-runtime"
                    | "x-response-time"
                    | "x-process-time"
                    | "x-csrf-token"
                    | "x-xsrf-token"
                    | "x-csrftoken"
            ) || ["x-b3-", "x-datadog-", "x-ratelimit", "x-rate-limit"]
                .iter()
                .any(|start| name.starts_with(start))
        }
        [b'r', ..] => matches!(name, "ratelimit" | "request-id") || name.starts_with("ratelimit-"),
        _ => {
            matches!(
                name,
                "server-timing"
                    | "traceparent"
                    | "tracestate"
                    | "traceresponse"
                    | "b3"
                    | "sentry-trace"
                    | "cf-ray"
                    | "csrf-token"
                    | "correlation-id"
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_fields_of_one_exchange_are_momentary() {
        for name in
            ["x-request-id", "x-b3-traceid", "x-ratelimit-remaining", "ratelimit-reset", "server-timing"]
        {
            assert!(is_momentary(name), "{name}");
        }
        for name in [
            "x-frame-options",
            "retry-after",
            "ratelimits",
            "x-b3",
            "vary",
            "etag",
            "x-powered-by",
            "referrer-policy",
        ] {
            assert!(!is_momentary(name), "{name}");
        }
    }
}
