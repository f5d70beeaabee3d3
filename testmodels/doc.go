// Package testmodels holds no code: the folder has two small trained models and
// the pictures to calibrate and test them with, which the project made itself.
// README.md says what each file is and what to expect of it.
package testmodels
