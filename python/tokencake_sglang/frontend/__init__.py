"""The frontend: agents, tools and the endpoint, on SGLang's language. Use it as `import tokencake_sglang as tc`."""
