// The description of the API, shown by Swagger UI. Nothing is requested from elsewhere: no validator, no fonts.

SwaggerUIBundle({ url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null, displayRequestDuration: true });
