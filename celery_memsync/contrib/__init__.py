"""What ties this package to frameworks: a module for each, which imports that framework, and which nothing else imports."""
